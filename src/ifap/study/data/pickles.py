"""Pickles of arrays: refused if they hold anything else, and written without the `pickle` module.

CIFAR is published as pickles, which can run any code when they are read. What arrays, texts and
lists need is little, and a file that asks for more is not CIFAR.
"""

from __future__ import annotations

import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifap.errors import ResultsError

# What the published files use; `numpy._core` is the same module under the name of numpy 2.
GLOBALS = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
# Constants, containers, the memo, and the call that rebuilds an array. No names made at run time,
# no classes, no persistent ids, no extensions, no buffers.
OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT",
    "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT",
    "DICT", "SETITEM", "SETITEMS", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
    "GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip


def refuse_foreign(path: Path) -> None:
    """Raise unless a pickle holds only arrays, texts, numbers, lists and dicts; nothing of it is run.

    Raises
    ------
    ResultsError
        If it asks for any other class or function, which the message names, or is no pickle.
    """
    ended = False
    try:
        with path.open("rb") as stream:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL" and argument not in GLOBALS:
                    raise ResultsError(f"{path} is refused: its pickle asks for {str(argument).replace(' ', '.')}")
                if opcode.name not in OPCODES:
                    wants = f" ({argument})" if argument is not None else ""
                    raise ResultsError(f"{path} is refused: its pickle uses {opcode.name}{wants}")
                ended = opcode.name == "STOP"
    except FileNotFoundError:
        raise ResultsError(f"{path} not found") from None
    except ResultsError:
        raise
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise ResultsError(f"{path} is damaged: no pickle ({error})") from None
    if not ended:
        raise ResultsError(f"{path} is damaged: its pickle breaks off")


def plain_pickle(value: Any) -> bytes:
    """Return a value as a pickle in the form of the published CIFAR files (protocol 2, texts as bytes).

    Equal values give equal bytes.
    """
    return b"\x80\x02" + _encoded(value) + b"."


def _encoded(value: Any) -> bytes:
    if isinstance(value, dict):
        items = b"".join(_encoded(key) + _encoded(entry) for key, entry in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_encoded, value)) + b"e"
    if isinstance(value, str):
        return _text(value.encode("latin-1"))
    if isinstance(value, np.ndarray):
        return _array(value)
    return b"J" + struct.pack("<i", value)


def _text(content: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(content)) + content


def _array(array: NDArray[np.uint8]) -> bytes:
    if array.dtype != np.uint8:
        raise TypeError(f"arrays of {array.dtype} are not written, only uint8")
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * _encoded(-1) + b"K\x00tb"
    shape = b"(" + b"".join(map(_encoded, array.shape)) + b"t"
    return empty + b"(K\x01" + shape + kind + b"\x89" + _text(array.tobytes()) + b"tb"
