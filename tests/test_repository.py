"""The house rules that a reader relies on: floors, a light import, the public names, examples that run."""

import ast
import doctest
import importlib.util
import re
import tomllib
import types
from pathlib import Path, PurePosixPath

import pytest

import keepnorm

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "keepnorm"

# The floors of the house, the lowest first: a file imports from its own floor and from lower ones. A name is a file or a
# folder under src/keepnorm; a file that is not named is on the floor of its folder.
FLOORS = (
    (
        "atomic",
        "axes",
        "bounded",
        "gradients",
        "capabilities",
        "keywords",
        "labels",
        "machine",
        "places",
        "powers",
        "precision",
        "subclasses",
        "tuning",
    ),
    ("hints", "plan", "roles", "transfer"),
    ("states", "moments"),
    ("request",),
    ("kernels", "kernels/jit"),
    ("kernels/cpu", "kernels/cuda"),
    ("engines", "engines/backends"),
    ("engines/dispatch",),
    ("engines/cells", "engines/standard", "engines/host", "engines/xarray"),
    ("engines/torch", "engines/cuda", "engines/dask", "engines/mlx"),
    ("engines/jax",),
    ("validate", "policies", "functional", "inverse", "norms"),
    ("accumulator", "running", "batchnorm", "renorm", "sync", "porting", "dialects", "explain"),
    ("stats", "conformance", "layers"),
    ("cli", "__init__", "__main__"),
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}

FRAMEWORKS = ("torch", "jax", "cupy", "dask", "tensorflow", "keras", "flax", "xarray", "matplotlib", "sklearn")
CONTRACT = (
    *(
        "moments",
        "affine",
        "normalize",
        "normalize_vjp",
        "batch_norm",
        "instance_norm",
        "layer_norm",
        "group_norm",
        "rms_norm",
    ),
    *("Moments", "Accumulator", "BatchNorm", "dialects", "explain", "explain_call", "threads"),
)


FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "_version.py")
MODULES = {path.relative_to(SOURCE).as_posix().removesuffix(".py").removesuffix("/__init__"): path for path in FILES}


def floor(module):
    """The floor of a module such as ``kernels/cpu/rows``: its own, or that of the nearest folder around it."""
    return next(FLOOR_OF[name] for name in (module, *map(str, PurePosixPath(module).parents)) if name in FLOOR_OF)


def imports(code):
    """The modules of keepnorm that code imports, at any depth of nesting."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for package, name in names:
            root, *rest = package.split(".")
            if root == "keepnorm":
                module = "/".join((*rest, name))
                yield module if module in MODULES else "/".join(rest) or "__init__"


def climbs(module, code):
    return [other for other in imports(code) if floor(other) > floor(module)]


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_from_its_own_floor_and_lower_ones(module):
    assert climbs(module, MODULES[module].read_text()) == []


def test_the_test_of_floors_can_fail():
    assert climbs("plan", "def f():\n    from keepnorm.engines.host import engine") == ["engines/host/engine"]
    assert climbs("axes", "from keepnorm.engines import dispatch") == ["engines/dispatch"]
    assert climbs("kernels/jit/launch", "from keepnorm.kernels.cpu.rows import tasks") == ["kernels/cpu/rows"]
    assert climbs("kernels/cpu/rows", "import keepnorm") == ["__init__"]


def test_every_name_on_a_floor_is_there():
    assert set(FLOOR_OF) <= set(MODULES)


def test_no_two_files_import_each_other():
    reads = {module: {m for m in imports(path.read_text()) if m != module} for module, path in MODULES.items()}
    while leaves := [module for module, others in reads.items() if not others & reads.keys()]:
        for module in leaves:
            del reads[module]
    assert reads == {}, "these are in a circle, or above one"


# What may be imported at module level, by file or folder: an engine is loaded for the first array of its library.
AT_MODULE_LEVEL = {
    "kernels": {"numba"},
    "engines/torch": {"torch"},
    "engines/jax/pairs": {"jax"},
    "engines/jax/traced": {"jax"},
    "layers/torch": {"torch"},
}


def test_only_kernels_import_numba_and_hardly_anybody_a_framework_at_module_level():
    for module, path in MODULES.items():
        allowed = (libraries for name, libraries in AT_MODULE_LEVEL.items() if f"{module}/".startswith(f"{name}/"))
        banned = {*FRAMEWORKS, "numba"}.difference(*allowed)
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not {name.partition(".")[0] for name in names} & banned, path


def loaded(run_python, code):
    out = run_python(f"{code}\nimport sys\nprint(*(name for name in {('numba', *FRAMEWORKS)} if name in sys.modules))")
    return out.split()


def test_import_loads_neither_numba_nor_a_framework(run_python):
    assert loaded(run_python, "import keepnorm") == []


def test_a_call_on_numpy_loads_no_framework(run_python):
    assert set(loaded(run_python, "import keepnorm, numpy\nkeepnorm.normalize(numpy.eye(3), 0)")) <= {"numba"}


def test_the_test_of_imports_can_fail(run_python):
    assert loaded(run_python, "import keepnorm, numba") == ["numba"]


def test_all_is_the_public_functions():
    def is_public(name):
        value = getattr(keepnorm, name)
        ours = getattr(value, "__module__", None) or ""
        return not name.startswith("_") and not isinstance(value, types.ModuleType) and ours.startswith("keepnorm")

    modules = {name for name in keepnorm.__all__ if isinstance(getattr(keepnorm, name), types.ModuleType)}
    assert {name for name in dir(keepnorm) if is_public(name)} == set(keepnorm.__all__) - modules
    assert set(CONTRACT) <= set(keepnorm.__all__)
    assert list(keepnorm.__all__) == sorted(keepnorm.__all__)


def test_a_public_name_stays_what_it_is_when_a_module_has_its_name():
    for name in ("explain", "moments"):
        importlib.import_module(f"keepnorm.{name}")
        assert callable(getattr(keepnorm, name))


@pytest.mark.parametrize("path", [p for p in FILES if ">>> " in p.read_text()], ids=lambda p: str(p.relative_to(SOURCE)))
def test_the_examples_of_docstrings_run(path):
    name = ".".join(("keepnorm", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    # A layer is of a framework, which may not be there.
    module = pytest.importorskip(name, exc_type=ImportError) if ".layers." in name else importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted
    assert results.failed == 0


def test_the_code_of_the_readme_runs_and_prints_what_it_says():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    test = doctest.DocTestParser().get_doctest(blocks[0], {}, "README.md", "README.md", 0)
    assert len(test.examples) == 6
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_readme_has_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    for command in ('python -m pip install ".[demo]" && keepnorm demo', "python -m pip install nox && python -m nox"):
        assert f"\n{command}\n" in readme
    assert "-m nox" in (ROOT / ".ci" / "run").read_text()


def test_the_readme_has_the_picture_and_the_figures_of_the_documentation():
    """After a new record: `python docs/readme.py`."""
    spec = importlib.util.spec_from_file_location("readme", ROOT / "docs" / "readme.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    readme = script.README.read_text(encoding="utf-8")
    assert script.PICTURE.read_text(encoding="utf-8") == script.picture()
    assert script.text(readme) == readme
    assert len(script.table().splitlines()) == 2 + len(script.ROWS)


def test_the_links_of_the_readme_lead_to_files():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", readme)
    assert len(links) > 8
    assert [link for pair in links for link in pair if link and "://" not in link and not (ROOT / link).is_file()] == []


def test_every_peer_has_a_session_and_a_group():
    from conformance.peers import PEERS

    sessions = re.search(r"PEERS = (\(.*?\))", (ROOT / "noxfile.py").read_text(), re.DOTALL)
    assert set(ast.literal_eval(sessions[1])) == set(PEERS)
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert set(PEERS) <= set(groups)


def test_pytorch_is_pinned_wherever_it_is_named():
    """An unpinned one brings gigabytes of CUDA packages."""
    pins = (ROOT / "conformance" / "constraints.txt").read_text().split("\n")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    named = [package for group in groups.values() for package in group if str(package).startswith("torch")]
    assert named
    assert set(named) <= set(pins)


def test_every_nox_session_says_what_it_does():
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body:
        if isinstance(node, ast.FunctionDef) and "session" in ast.unparse(node.decorator_list[:1] or [ast.Pass()]):
            assert ast.get_docstring(node), node.name


def names_in(path):
    """The names of the tests of a file, as pytest has them."""
    for node in ast.parse(path.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        for one in inside:
            if isinstance(one, ast.FunctionDef) and one.name.startswith("test_"):
                yield f"{node.name}::{one.name}" if isinstance(node, ast.ClassDef) else one.name


def promised():
    return re.findall(r"`(tests/[^`]*\.py)::([^`]*)`", (ROOT / "docs" / "reliability.md").read_text())


def test_every_promise_is_proved_by_a_test_that_exists():
    names = promised()
    assert len(names) > 40
    assert [f"{file}::{name}" for file, name in names if name not in names_in(ROOT / file)] == []


def test_every_promise_has_a_test():
    """Each row of the tables names one, and the five rules are told once, there."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| promise", "| rule"))
    ]
    assert [row for row in rows if "::test_" not in row] == []
    assert {row.split(" | ")[0].removeprefix("| ") for row in rows if row[2].isdigit()} == set("12345")


def test_contributing_and_the_workflow_name_sessions_that_are_there():
    sessions = set(re.findall(r"^def (\w+)\(session: nox", (ROOT / "noxfile.py").read_text(), re.MULTILINE))
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    named = re.findall(r"session: \[?([\w, ]+)", workflow)
    named += re.findall(r"`nox -s \"?([a-z ]+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert {name for names in named for name in re.findall(r"\w+", names)} <= sessions


def test_contributing_draws_every_folder():
    folders = {path.parent.relative_to(SOURCE).as_posix() for path in FILES} - {".", "kernels", "engines"}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert {folder for folder in folders if f"{folder.rpartition('/')[2]}/" not in text} <= {"stats/readers"}


# Packages whose module has another name, and modules that are no package or need a GPU.
PACKAGES = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "haiku": "dm-haiku",
    "numba_cuda": "numba-cuda",
    "tensorflow": "tensorflow-cpu",
}
ELSEWHERE = {"pwd", "cupy"}


def test_what_a_test_skips_without_is_installed_by_a_session():
    """A test that no session can run passes whatever it says: what it needs is an extra or in a group."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"].values(), project["project"]["optional-dependencies"].values()
    named = {
        re.split(r"[\[<>=; ]", line)[0].replace("_", "-")
        for part in groups
        for each in part
        for line in each
        if isinstance(line, str)
    }
    for path in (*ROOT.glob("tests/**/*.py"), *ROOT.glob("conformance/**/*.py")):
        needed = {name.partition(".")[0] for name in re.findall(r'importorskip\("([\w.]+)"', path.read_text())}
        assert {PACKAGES.get(name, name).replace("_", "-") for name in needed - ELSEWHERE - {"keepnorm"}} <= named, path
