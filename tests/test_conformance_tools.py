"""The judges of the conformance suite, judged: the exact oracle, the tolerance rule, the cases, the divergences on file."""

import importlib
import math
import random
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

cases = importlib.import_module("conformance.cases")
data = importlib.import_module("conformance.data")
divergences = importlib.import_module("conformance.divergences")
oracle = importlib.import_module("conformance.oracle")
report = importlib.import_module("conformance.report")
tolerance = importlib.import_module("conformance.tolerance")
verdict = importlib.import_module("conformance.verdict")

SMALL = cases.select(40)


def test_oracle_gives_the_certified_standard_deviation_of_nist_numacc4() -> None:
    values = [10000000.2] + [10000000.1, 10000000.3] * 500
    mean, var = oracle.exact_moments(values)
    sd = math.sqrt(var * Fraction(len(values), len(values) - 1))
    assert abs(float(mean) - 10000000.2) < 1e-8
    assert abs(sd - 0.1) < 1e-8  # to what the values are rounded


def test_exact_moments_are_those_of_plain_fractions() -> None:
    draw = random.Random(5)
    values = [draw.uniform(-1, 1) * 10.0 ** draw.randint(-40, 30) for _ in range(50)]
    whole = [Fraction(v) for v in values]
    mean = sum(whole) / 50
    assert oracle.exact_moments(values) == (mean, sum((v - mean) ** 2 for v in whole) / 50)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_two_pass_moments_of_large_cells_are_the_exact_ones(offset: float) -> None:
    values = (np.random.default_rng(1).standard_normal(oracle.EXACT_LIMIT + 1) + offset).tolist()
    mean, var = oracle.exact_moments(values)
    high, low, near_var = oracle.cell_moments(values)
    assert abs(Fraction(high) + Fraction(*low.as_integer_ratio()) - mean) < 1e-16
    assert abs(Fraction(*near_var.as_integer_ratio()) / var - 1) < 1e-15


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([math.inf, 1.0], math.inf),
        ([-math.inf, 1.0], -math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, 1.0], math.nan),
        ([], math.nan),
    ],
)
def test_moments_of_what_is_not_finite(values: list[float], mean: float) -> None:
    found, _, var = oracle.cell_moments(values)
    np.testing.assert_equal(found, mean)
    assert math.isnan(var)


@pytest.mark.parametrize("operation", ["batch", "layer", "instance", "group", "rms"])
def test_oracle_gradient_is_the_slope_of_the_oracle_output(operation: str) -> None:
    case = next(
        c for c in cases.all_cases()
        if c.operation == operation and c.mode == "backward" and c.dtype == "float64"
        and c.values in ("ratio 0", "ratio 1", "ratio 100")
        and c.weight and c.eps and c.count > 2
    )  # fmt: skip
    given = data.load(case)
    answer = oracle.truth(case, given).answer
    way = np.random.default_rng(2).standard_normal(case.shape)
    step = 1e-6 * float(np.std(given.x))

    def loss(by: float) -> float:
        moved = given._replace(x=given.x + by * step * way)
        return (oracle.truth(case, moved).answer.output * given.dy).sum()

    slope = (loss(1) - loss(-1)) / (2 * step)
    assert float(slope) == pytest.approx(float((answer.dx * way).sum()), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_float64_by_the_definition_is_within_the_bounds_of_a_peer(case: "cases.Case") -> None:
    """The bounds are not too tight: the oracle rounded to the result's dtype passes, as ours and as a peer's."""
    given = data.load(case)
    truth = oracle.truth(case, given)
    rounded = oracle.Answer(
        *(
            None if value is None else value.astype(tolerance.result_dtype(name, case))
            for name, value in zip(oracle.Answer._fields, truth.answer, strict=True)
        )
    )
    for found in verdict.verdicts(case, given, truth, rounded, rounded):
        assert found.ours_ok, found.says
        assert found.peer_ok, found.says
        assert found.between_ok, found.says


@pytest.mark.parametrize("case", [c for c in SMALL if c.values.startswith("ratio")], ids=lambda case: case.name)
def test_bounds_are_not_too_wide(case: "cases.Case") -> None:
    """An output that is off by four units in the last place is outside our contract."""
    given = data.load(case)
    truth = oracle.truth(case, given)
    y = truth.answer.output
    off = y + 4 * tolerance.eps(data.DTYPES[case.dtype]) * np.maximum(np.abs(y), 1) * (8 if case.dtype == "float64" else 1)
    (found,) = verdict.verdicts(case, given, truth, oracle.Answer(output=off), None)[:1]
    assert not found.ours_ok


def test_a_number_where_there_is_nan_is_no_agreement() -> None:
    nan, one = np.array([np.nan]), np.array([1.0])
    assert verdict.distance(one, nan.astype(np.longdouble))[0] == math.inf
    assert verdict.distance(nan, one.astype(np.longdouble))[0] == math.inf
    assert verdict.distance(nan, nan.astype(np.longdouble))[0] == 0


def test_case_list_is_the_same_in_every_process() -> None:
    code = "from conformance.cases import all_cases; print(*(c.name for c in all_cases()), sep='\\n')"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert other == [case.name for case in cases.all_cases()]
    assert len(set(other)) == len(other)


def test_case_list_has_everything_that_was_promised() -> None:
    everything = cases.all_cases()
    assert len(everything) > 5000
    for rank in range(1, 6):
        kept = {case.keep for case in everything if case.operation == "batch" and len(case.shape) == rank}
        assert len(kept) == 2**rank
    for field, values in {
        "operation": {"batch", "layer", "instance", "group", "rms"},
        "mode": {"forward", "inference", "update", "backward"},
        "dtype": set(cases.DTYPES),
        "layout": set(cases.LAYOUTS),
        "values": {f"ratio {r}" for r in cases.RATIOS} | set(cases.SPECIAL),
        "eps": set(cases.EPS),
        "mask": {"", "full", "rows"},
    }.items():
        assert {getattr(case, field) for case in everything} == values


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_layouts_change_addresses_and_no_value(layout: str) -> None:
    x = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    turned = data.arrange(x, layout)
    np.testing.assert_array_equal(turned, x)
    assert (turned.strides == x.strides) == (layout == "C")


def test_data_do_not_depend_on_the_layout() -> None:
    case = SMALL[0]
    for layout in cases.LAYOUTS:
        np.testing.assert_array_equal(data.load(replace(case, layout=layout)).x, data.load(case).x)


def test_every_divergence_has_a_cause_and_a_case() -> None:
    names = {case.name for case in cases.all_cases()}
    files = sorted(divergences.FOLDER.glob("*.toml"))
    assert files
    for path in files:
        content = divergences.load(path.stem)
        for row in content.rows:
            assert row.witness in names, (path.name, row)
            assert row.cause in content.causes, (path.name, row)


def test_the_page_is_generated_from_the_divergences_on_file() -> None:
    assert report.PAGE.read_text() == report.page()


def test_a_report_has_the_tables_of_every_peer_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"version": {"torch": "2"}, "cases": 3, "passed": 3, "off": 1, "not_expressible": {"no masks": 2}}
    worst = {"our_worst_ulp_to_float32": 0.5, "our_worst_ulp": 0.6, "their_worst_ulp": 9.5}
    group = {"operation": "batch", "mode": "training", "layout": "NHWC", "cases": 3, "passed": 3, "off": 1}
    groups = [group | {"our_worst_ulp": 0.6, "their_worst_ulp": 9.5}]
    monkeypatch.setattr(report, "BUILD", tmp_path)
    monkeypatch.setattr(report.divergences, "load", lambda _: None)
    for name in ("torch", "flax"):
        report.update(SimpleNamespace(name=name, file=None, summary=lambda: numbers | worst | {"groups": groups}))
    text = (tmp_path / "report.md").read_text()
    assert text.count("| batch | training | NHWC | 3 | 3 | 1 | 0.6 | 9.5 |") == 2
    assert text.count("- 2 cases: no masks") == 2
    assert "| flax | torch 2 | 3 | 3 | 2 | 1 | 0.5 | 0.6 | 9.5 |" in text


def test_suite_can_be_asked_for_what_is_not_there() -> None:
    command = [sys.executable, "-m", "keepnorm.conformance", "mxnet"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "got mxnet" in answer.stderr
