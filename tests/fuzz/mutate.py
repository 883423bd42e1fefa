"""Seeded mutations of real files: of their bytes, and of what JSON, YAML, CSV and safetensors say in them."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import json
import pickle
import struct

OWNED = "owned"
"""The file that every payload would make, were it run."""
HTML = "<script>alert(1)</script>"
_TWICE = "\u0001twice"


class Harm:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (eval, (f"open({OWNED!r}, 'w').close()",))


def nested(depth, leaf=0):
    for _ in range(depth):
        leaf = [leaf]
    return leaf


STRANGE = [
    None, True, False, -1, 0, 1, 2, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(10**18), 0.5, -0.0, 1e308, float("inf"),
    float("-inf"), float("nan"), "", " ", "x" * 5000, "\0", "\u202e\ud7ff\U0001f600", "../../etc/passwd", "/dev/zero",
    "/etc/passwd", "__class__", "os.system", "${jndi:x}", "{{ 7 * 7 }}", "{% include '/etc/passwd' %}",
    r"\input{/etc/passwd}", "=1+1", "'; touch owned; '", "$(touch owned)", "`touch owned`", HTML, [], {}, [[]],
    {"": ""}, {"a": None}, list(range(2000)), ["x"] * 2000, nested(60), nested(900), {"__proto__": 1}, [None, 1, "a"],
    {"kind": "list", "items": []}, {"kind": "tensor", "shape": [1], "dtype": "float32", "high": 1},
    "float64", "bfloat16", "int64", "bool", "ifap:vgg19_bn", "ifap:vit_tiny", "ifap:../x", 1024, 4096, 25_000, 100_000,
]  # fmt: skip


# --- bytes ----------------------------------------------------------------------------------------


def mutate_bytes(content, rng):
    """Flip, cut, repeat, insert or swap some bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(8)
        if how == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif how == 1 and data:
            data[at % len(data)] = rng.randrange(256)
        elif how == 2:
            del data[at:]
        elif how == 3:
            del data[at : at + rng.choice((1, 2, 8, 100))]
        elif how == 4:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 40))))
        elif how == 5:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.choice((1, 16, 400))]
        elif how == 6:
            data[at:at] = rng.choice(
                (b"[" * 2000, b"{" * 2000, b'"', b"\\u0000", b"\xff", b"\n", b"1e999", b"9" * 5000, b"NaN", b"-")
            )
        else:
            data[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**40)))
    return bytes(data)


def something_else(rng):
    """Return a whole file that is not what it should be."""
    return rng.choice(
        (
            b"", b"\0" * 100, b"null", b"[]", b'""', b"[" * 100_000, b'{"a":' * 50_000, pickle.dumps(Harm()),
            b"PK\x03\x04" + b"\0" * 60, b"\x1f\x8b\x08\0" * 20, b"\xef\xbb\xbf{}", "{}".encode("utf-16"),
        )
    )  # fmt: skip


# --- JSON and what is like it ---------------------------------------------------------------------


def places(value, found=None):
    """Return every (container, key) of a nested value."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        places(inner, found)
    return found


def mutate_structure(value, rng, strange=STRANGE):
    """Return a copy of nested lists and dicts in which something is wrong; ``_TWICE`` marks doubled keys."""
    value = {"": copy.deepcopy(value)}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        every = places(value)
        # Few places hold nearly all values: choose a depth first.
        short = [place for place in every if not isinstance(place[0], list) or place[1] < 3]
        where, key = rng.choice(short if rng.random() < 0.8 else every)
        how = rng.randrange(8)
        if how <= 3:
            where[key] = copy.deepcopy(rng.choice(strange))
        elif how == 4 and len(where) > 1:
            del where[key]
        elif how == 5:
            other, other_key = rng.choice(every)
            where[key] = copy.deepcopy(other[other_key])
        elif how == 6 and isinstance(where, dict):
            where[f"{key}{rng.choice((_TWICE, 'x', '.', ''))}"] = copy.deepcopy(where[key])
        elif isinstance(where[key], (int, float)) and not isinstance(where[key], bool):
            where[key] = where[key] * rng.choice((-1, 2, 1000, 10**12)) + rng.choice((-1, 0, 1))
        elif isinstance(where[key], str):
            where[key] = mutate_bytes(where[key].encode(), rng).decode("latin-1")
        elif isinstance(where[key], list) and where[key]:
            where[key] = where[key] * rng.choice((2, 50)) if rng.random() < 0.5 else where[key][::-1]
    return value.get("")


def to_json(value):
    return json.dumps(value).replace(json.dumps(_TWICE)[1:-1], "").encode()


def mutate_json(content, rng):
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    if rng.random() < 0.03:
        return something_else(rng)
    return to_json(mutate_structure(json.loads(content), rng))


# --- safetensors ----------------------------------------------------------------------------------


def mutate_safetensors(content, rng):
    """Mutate the bytes, or the header, which is JSON behind its length."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    if rng.random() < 0.03:
        return something_else(rng)
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    if rng.random() < 0.6:
        header = mutate_structure(
            header, rng, [*STRANGE, "F64", "BF16", "F8_E4M3", "I8", "BOOL", "U64", "C64", [2**62, 4], [0], [0, 2**40]]
        )
    else:
        name = rng.choice(list(header))
        entry = header[name]
        if isinstance(entry, dict) and "shape" in entry:
            how = rng.randrange(5)
            if how == 0:
                entry["shape"] = entry["shape"][::-1]
            elif how == 1:
                entry["shape"] = [rng.choice((0, 1, 2**31, 2**62)), *entry["shape"][1:]]
            elif how == 2:
                entry["data_offsets"] = [rng.choice((0, 8, 2**40)), entry["data_offsets"][1]]
            elif how == 3:
                header[rng.choice(("a" * 3000, "../x", "a.b.c", ""))] = header.pop(name)
            else:
                other = rng.choice(list(header))
                header[name], header[other] = header[other], header[name]
    text = to_json(header)
    text += b" " * (-len(text) % 8)
    stated = len(text) if rng.random() < 0.95 else rng.choice((0, 1, len(text) - 1, 2**31, 2**63, 2**64 - 1))
    return struct.pack("<Q", stated) + text + body


# --- YAML -----------------------------------------------------------------------------------------

LAUGHS = "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9) if before else 'lol'}]"
    for before, name in zip(["", *"abcdefghijk"], "abcdefghijkl", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "\n".join(
    f"{n}: &{n} {{<<: [*{p}, *{p}, *{p}]}}" for p, n in itertools.pairwise("abcdefgh")
)
SNIPPETS = [
    LAUGHS, MERGES, "x: &x [*x]", "&x ? *x\n: *x", "a: *unknown",
    f"a: !!python/object/apply:os.system ['touch {OWNED}']",
    f"a: !!python/object/new:os.system ['touch {OWNED}']", "a: !!python/name:os.system", "a: 2020-99-99",
    "a: !!timestamp x", "a: !!int x", "a: !!int ''", "a: !!float ''", "a: !!binary '%'", "a: !!bool x", "a: !!set {x}",
    "a: !!omap [x]", "a: !!pairs x", "? [a]\n: b", "? {a: b}\n: c", "a: " + "9" * 5000, "a: 1:99:99", "a: 0b", "a: 0x",
    "a: |99\n x", "%YAML 9.9\n---\na: b", "%TAG ! tag:x\n---\na: !x b", "---\na\n---\nb", "a: .inf", "a: -.nan",
    "a: &a\n" + "  " * 50 + "- *a", "a: " + "[" * 600, "a: " + "{a: " * 600, "- " * 600, "? " * 600,
    "a: !" + "x" * 2000,
    "\ta: b", "a: 'x", 'a: "\\x"', "a: @b", "a: b: c", "<<: [1]", "<<: {scale: quick}", "a: 1e5", "a: 1_000", "=: =",
]  # fmt: skip


def mutate_yaml(content, rng, load, dump):
    """Mutate the text, add a snippet that means harm, or change what the text says."""
    how = rng.random()
    if how < 0.25:
        return mutate_bytes(content, rng)
    if how < 0.28:
        return something_else(rng)
    if how < 0.5:
        lines = content.decode().splitlines()
        at = rng.randrange(len(lines) + 1)
        indent = " " * (len(lines[at]) - len(lines[at].lstrip())) if at < len(lines) else ""
        snippet = rng.choice(SNIPPETS)
        lines[at:at] = [(indent if rng.random() < 0.7 else "") + line for line in snippet.splitlines()]
        return "\n".join(lines).encode("utf-8", "replace")
    try:
        return dump(mutate_structure(load(content), rng)).replace(_TWICE, "").encode("utf-8", "replace")
    except RecursionError:
        return dump(load(content)).encode()


# --- CSV ------------------------------------------------------------------------------------------

FIELDS = [
    "", " ", "nan", "NaN", "inf", "-1", "0", "1e999", "1_000", "\u0661", "9" * 400, "true", "None", HTML, '"', "a\nb",
    "a,b",
    "\\end{tabular}\\input{/etc/passwd}", "](javascript:alert(1))", "javascript:alert(1)", "../../../../etc/passwd",
    "/etc/passwd", "=HYPERLINK(1)", "|", "x" * 3000, "\u202e", "classification", "digits", "ifap", "baseline", "macs",
]  # fmt: skip


def mutate_csv(content, rng):
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    if rng.random() < 0.03:
        return something_else(rng)
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.randrange(len(rows))
        column = rng.randrange(len(rows[row]) or 1)
        how = rng.randrange(7)
        if how <= 3 and rows[row]:
            rows[row][column % len(rows[row])] = rng.choice(FIELDS)
        elif how == 4 and len(rows) > 1:
            del rows[row]
        elif how == 5:
            rows.insert(row, list(rows[rng.randrange(len(rows))]))
        elif rows[row]:
            del rows[row][column % len(rows[row])]
        if not rows:
            break
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")
