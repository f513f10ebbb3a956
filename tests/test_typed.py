"""Type checkers refuse what the functions refuse, and know what comes back; the stub says what the functions take."""

import ast
import inspect
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import keepnorm as kn

HERE = Path(__file__).parent
STUB = HERE.parent / "src" / "keepnorm" / "__init__.pyi"
USER = HERE / "typed" / "user.py"


def refused():
    """The lines of the user's program that must be errors."""
    return {i for i, line in enumerate(USER.read_text().splitlines(), 1) if "# error" in line}


def run(*command):
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False, cwd=HERE.parent)


def test_mypy_refuses_what_is_wrong_and_nothing_else(tmp_path):
    if not find_spec("mypy"):
        pytest.skip("mypy is in the lint group")
    config = tmp_path / "mypy.ini"
    config.write_text(f"[mypy]\nstrict = True\nmypy_path = {STUB.parent.parent}\ncache_dir = {tmp_path / 'cache'}\n")
    found = run("mypy", "--config-file", str(config), "--no-error-summary", str(USER))
    errors = {int(n) for n in re.findall(r"user\.py:(\d+): error", found.stdout)}
    assert errors == refused(), found.stdout + found.stderr


def test_pyright_refuses_what_is_wrong_and_nothing_else(tmp_path):
    if not find_spec("basedpyright"):
        pytest.skip("basedpyright is in the lint group")
    config = tmp_path / "pyrightconfig.json"
    config.write_text(
        json.dumps({"include": [str(USER)], "extraPaths": [str(STUB.parent.parent)], "typeCheckingMode": "standard"})
    )
    found = run("basedpyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(config))
    diagnostics = json.loads(found.stdout)["generalDiagnostics"]
    errors = {d["range"]["start"]["line"] + 1 for d in diagnostics if d["severity"] == "error"}
    assert errors == refused(), found.stdout


def test_the_stub_has_the_public_names_and_their_parameters():
    tree = ast.parse(STUB.read_text())
    functions, names = {}, {"__version__"}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            taken = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            functions.setdefault(node.name, taken)
            assert functions[node.name] == taken, node.name
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname for alias in node.names if alias.asname}
    assert names | functions.keys() == {*kn.__all__, "__version__"}
    for name, taken in functions.items():
        parameters = inspect.signature(getattr(kn, name)).parameters.values()
        assert taken == [p.name for p in parameters if p.kind is not p.VAR_KEYWORD], name
