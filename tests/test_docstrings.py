"""Every example in a public docstring runs and prints what it says, and every public name has a documented contract."""

import doctest
import inspect
import re

import numpy as np
import pytest

import keepnorm as kn

PUBLIC = {name: getattr(kn, name) for name in kn.__all__}
# Modules of data, and names that are documented where they are made.
CALLABLE = {name: value for name, value in PUBLIC.items() if callable(value)}
FUNCTIONS = {name: value for name, value in CALLABLE.items() if inspect.isfunction(value)}

HANDED_OUT = ("Explanation", "Gradients")  # made by explain and by a vjp, whose examples show them


def methods(kind):
    return {
        f"{kind.__name__}.{name}": value
        for name, value in inspect.getmembers(kind)
        if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)) and name in vars(kind)
    }


DOCUMENTED = CALLABLE | {
    name: value for kind in CALLABLE.values() if inspect.isclass(kind) for name, value in methods(kind).items()
}


@pytest.mark.parametrize("name", ["keepnorm", *PUBLIC])
def test_the_examples_run(name):
    """All examples of one public name, members included, as NumPy prints them at its defaults."""
    thing = kn if name == "keepnorm" else PUBLIC[name]
    examples = doctest.DocTestFinder(recurse=name != "keepnorm" and not inspect.ismodule(thing)).find(
        thing, name, module=False, globs={}
    )
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report = []
    with np.printoptions(precision=8, suppress=False, legacy=False):
        for example in examples:
            runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


def test_a_wrong_example_would_be_noticed():
    examples = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner().run(examples, out=lambda _: None).failed == 1


@pytest.mark.parametrize("name", [n for n in CALLABLE if n not in HANDED_OUT])
def test_what_one_calls_has_an_example(name):
    assert ">>> " in inspect.getdoc(CALLABLE[name])


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_member_says_what_it_is(name):
    text = inspect.getdoc(DOCUMENTED[name])
    assert text
    first = text.splitlines()[0]
    assert re.search(r"[.:]$|``$", first), f"{name}: {first!r} is no sentence"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_documents_every_parameter_its_result_and_its_errors(name):
    text = inspect.getdoc(FUNCTIONS[name])
    for section in ("Parameters", "Raises"):
        assert f"\n{section}\n{'-' * len(section)}" in text, f"{name} lacks {section}"
    described = text.partition("Parameters\n")[2].partition("\n\n")[0]
    for parameter in inspect.signature(FUNCTIONS[name]).parameters:
        if parameter != "unknown":  # the keywords that are only taken to refuse them
            assert re.search(rf"\b{parameter}\b", described), f"{name} does not describe {parameter}"
