"""Every Python block of the documentation runs, prints what it says, and agrees with the libraries that it names."""

import ast
import doctest
import os
import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

from keepnorm.cli.main import _joined, _parser

ROOT = Path(__file__).parent.parent
GENERATED = ROOT / "docs" / "conformance.md"  # its blocks show what goes wrong in other libraries; they assert nothing
SOURCES = sorted({*ROOT.glob("docs/**/*.md")} - {GENERATED})
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in SOURCES}
LIBRARIES = ("torch", "keras", "flax", "jax", "tensorflow", "sklearn", "xarray", "dask", "onnx")

# Keras asks for its backend at import; TensorFlow would be its own choice, installed or not.
os.environ.setdefault("KERAS_BACKEND", next((name for name in ("jax", "torch") if find_spec(name)), "tensorflow"))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, language="python"):
    return [code for name, code in FENCE.findall(PAGES[page]) if name == language]


def statements(code):
    """The code without the prompts and the output of an example."""
    examples = doctest.DocTestParser().get_examples(code)
    return "".join(e.source for e in examples) if examples else code


def library(code):
    """The library that a block needs beside NumPy, the first of LIBRARIES where it needs two; empty without one."""
    named = set()
    for node in ast.walk(ast.parse(statements(code))):
        if isinstance(node, ast.Import):
            named |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named.add(node.module.partition(".")[0])
    return next((name for name in LIBRARIES if name in named), "")


def run(code, scope, page):
    """Blocks of a page share their names, as a reader's session would."""
    if ">>> " not in code:
        exec(compile(code, page, "exec"), scope)
        return
    test = doctest.DocTestParser().get_doctest(code, scope, page, page, 0)
    report = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    doctest.DocTestRunner(optionflags=flags).run(test, out=report.append, clear_globs=False)
    scope.update(test.globs)
    assert not report, "".join(report)


NUMPY = [page for page in PAGES if any(not library(code) for code in blocks(page))]
SPELLED = [(page, name) for page in PAGES for name in LIBRARIES if name in map(library, blocks(page))]


@pytest.mark.parametrize("page", NUMPY)
def test_the_code_of_a_page_runs_and_prints_what_it_says(page):
    scope = {}
    for code in blocks(page):
        if not library(code):
            run(code, scope, page)


@pytest.mark.parametrize(("page", "name"), SPELLED)
def test_each_spelling_of_a_page_gives_our_numbers(page, name):
    if not find_spec(name):
        pytest.skip(f"{name} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a framework says of itself at import is not ours
        scope = {}
        for code in blocks(page):
            if library(code) in ("", name):
                run(code, scope, page)


@pytest.mark.parametrize("page", [page for page in PAGES if any("keepnorm " in code for code in blocks(page, "console"))])
def test_the_command_line_knows_each_command(page):
    for line in "".join(blocks(page, "console")).splitlines():
        words = re.findall(r'"[^"]*"|\S+', line.removeprefix("$ ").partition(" #")[0])
        if words[:1] == ["keepnorm"]:
            _parser().parse_args(_joined([word.strip('"') for word in words[1:]]))


def test_no_block_is_left_out():
    """A fence of Python is written as such: nothing with a prompt stands in another fence, where no test would find it."""
    for page in PAGES:
        languages = {name for name, code in FENCE.findall(PAGES[page]) if re.search(r"^>>> |^import ", code, re.MULTILINE)}
        assert languages <= {"python"}, page


def test_a_wrong_output_on_a_page_would_be_noticed():
    with pytest.raises(AssertionError, match="Expected"):
        run(">>> 1 + 1\n3\n", {}, "page")
