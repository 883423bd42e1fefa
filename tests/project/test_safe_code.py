"""What the code never does: hand text to a shell, unpickle, evaluate, or put any name into a command."""

from __future__ import annotations

import ast
import re

import pytest
from workflow_project import ROOT

from ifap.study.config.params import Params

CODE = [path for top in ("src", "stages", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]
RULES = sorted((ROOT / "rules").glob("*.smk"))
FORBIDDEN = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pickle.load", "pickle.loads",
    "pickle.Unpickler", "torch.load", "torch.hub.load", "joblib.load", "marshal.loads", "shelve.open", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "pd.read_pickle", "pd.eval",
}  # fmt: skip
# torchvision's own reader of CIFAR; `ifap.study.data.pickles` refuses a pickle of anything but arrays first.
SAFE_WORD = re.compile(r"[A-Za-z0-9_.-]+")


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_there_is_code_to_look_at():
    assert len(CODE) > 50
    assert len(RULES) >= 3
    assert any(name == "subprocess.run" for path in CODE for name, _ in calls(path))


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell():
    for path in CODE:
        for name, call in calls(path):
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            only_weights = name == "torch.load" and ast.unparse(keywords.get("weights_only", ast.Constant(0))) == "True"
            assert name not in FORBIDDEN or only_weights, f"{path}, line {call.lineno}: {name}"
            assert "shell" not in keywords, f"{path}, line {call.lineno}: a shell"
            allow = keywords.get("allow_pickle")
            assert allow is None or ast.literal_eval(allow) is False, f"{path}, line {call.lineno}: allow_pickle"
            if name.startswith("subprocess.") and name != "subprocess.PIPE":
                assert isinstance(call.args[0], (ast.List, ast.Name, ast.Starred)), (
                    f"{path}, line {call.lineno}: not a list"
                )


def commands(text):
    """Return every shell command of a rule file, its parts joined."""
    found = re.findall(r'^    shell:\n((?:^        ".*"\n)+)', text, flags=re.MULTILINE)
    return ["".join(ast.literal_eval(line.strip()) for line in block.splitlines()) for block in found]


def constrained():
    block = re.search(r"^wildcard_constraints:\n((?:    .*\n)+)", (ROOT / "rules/common.smk").read_text(), re.MULTILINE)
    return dict(re.findall(r"^    (\w+)=(.*),$", block[1], flags=re.MULTILINE))


def test_commands_hold_nothing_but_constrained_names():
    every = [command for path in RULES for command in commands(path.read_text())]
    assert len(every) == sum(path.read_text().count("    shell:") for path in RULES) > 5
    for command in every:
        for name in re.findall(r"\{([^}]*)\}", command):
            kind, _, rest = name.partition(":")[0].partition(".")
            allowed = kind == "log" or (kind == "wildcards" and rest in constrained()) or name in {
                "PYTHON", "params.scale", "params.cells", "resources.gpu", "threads",
            }  # fmt: skip
            assert allowed, f"{{{name}}} in: {command}"


def test_no_command_takes_whatever_python_is_on_the_path():
    for command in [command for path in RULES for command in commands(path.read_text())]:
        assert re.match(r"(IFAP_GPU=\{resources\.gpu\} )?\{PYTHON\} -m stages\.", command), command
    assert "shlex.quote(sys.executable)" in (ROOT / "rules/common.smk").read_text()


def test_the_only_text_of_the_user_in_a_command_is_quoted():
    """Which cells a run is limited to is free text; all else is checked names."""
    common = (ROOT / "rules/common.smk").read_text()
    assert 'return f"--cells {shlex.quote(str(cells))}" if cells else ""' in common


def test_every_wildcard_of_a_path_is_constrained():
    used = {name for path in RULES for name in re.findall(r"\{\{(\w+)\}\}", path.read_text())}
    used |= set(
        re.findall(r"\{(\w+)\}", re.search(r'^CELL = "(.*)"$', (ROOT / "rules/common.smk").read_text(), re.M)[1])
    )
    assert {"dataset", "table", "method", "seed"} <= used
    assert used <= set(constrained())


@pytest.mark.parametrize("name", ["a b", "a;b", "$(id)", "a/../b", "..", "a\n", "", "A", "-x", "a'b"])
def test_names_that_reach_a_command_or_a_path_are_plain_words(name):
    """Scales, data sets, models and methods are of this type; tables and seeds are stricter still."""
    keys = Params.model_json_schema()["$defs"]["TaskGrid"]["properties"]["datasets"]["items"]
    pattern = keys["pattern"]
    assert SAFE_WORD.fullmatch("resnet_tiny")
    assert re.fullmatch(pattern.removeprefix("^").removesuffix("$"), "resnet_tiny")
    assert not re.fullmatch(pattern.removeprefix("^").removesuffix("$"), name)
