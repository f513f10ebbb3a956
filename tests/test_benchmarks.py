"""The benchmarks: each class runs, a peer that is wrong or missing never becomes a figure, goals are judged as written."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asv_bench import cases, contestant, goals, machine, paired, peers, record, smoke, startup, sweep, targets
from asv_bench.benchmarks import starting, versus_memory, versus_peers
from asv_bench.cases import Case
from asv_bench.contestant import Contestant

ROOT = Path(__file__).parent.parent
CASE = cases.TRAINING[1]

# What must be installed for a skip to be a fault.
NEEDS = {
    "torch": ("torch",),
    "compile": ("torch",),
    "jax": ("jax",),
    "keras": ("keras", "tensorflow"),
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "onnx"),
    "opencv": ("cv2",),
    "bottleneck": ("bottleneck",),
    "numbagg": ("numbagg",),
    "dask": ("dask",),
    "sklearn": ("sklearn",),
    "copy": (),
    "read": (),
    "bfloat16": ("ml_dtypes",),
}


@pytest.fixture
def tiny(monkeypatch):
    """Sizes and lengths at which nothing takes long."""
    monkeypatch.setattr(cases, "LIMIT", 2048)
    for name, value in (("LEAST", 1), ("MOST", 1), ("SECONDS", 0.0), ("SETTLE", 0.0), ("SAMPLE", 0.0)):
        monkeypatch.setattr(paired, name, value)


@pytest.fixture(scope="module")
def outcomes():
    """Every benchmark class, run once in a process of its own: frameworks start threads, and cores are chosen."""
    done = subprocess.run([sys.executable, "-m", "asv_bench.smoke"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def pretend(monkeypatch, make):
    """Put a peer of our own in the place of NumPy's: make(data) gives its answer."""
    monkeypatch.setattr(peers, "prepare", lambda _, data: Contestant(lambda: make(data), lambda y: (y,), 1))


def right(data):
    mean, var = data.x.mean(data.reduced, keepdims=True), data.x.var(data.reduced, keepdims=True)
    return (data.x - mean) / np.sqrt(var + cases.EPS) * data.weight + data.bias


@pytest.mark.slow
def test_every_benchmark_class_runs(outcomes):
    assert {o["benchmark"].split(".")[0] for o in outcomes} == {c.__name__ for c in smoke.classes()}
    for outcome in outcomes:
        assert "error" not in outcome, outcome
        if "skip" in outcome:
            needed = [module for word in outcome["params"] for module in NEEDS.get(word, ())]
            assert not all(map(importlib.util.find_spec, needed)), outcome


@pytest.mark.slow
def test_every_track_gives_a_positive_number(outcomes):
    values = [o["value"] for o in outcomes if ".track_" in o["benchmark"] and "value" in o]
    assert values
    assert all(math.isfinite(v) and v > 0 for v in values)


def test_every_track_has_a_unit():
    for benchmark in smoke.classes():
        for name in smoke.methods(benchmark):
            if name.startswith("track_"):
                assert getattr(benchmark, name).unit in ("x", "ms", "GB/s", "MiB", "threads"), (benchmark, name)


def test_every_class_that_measures_once_has_its_own_cache_line():
    # asv tells caches apart by the line of setup_cache: an inherited one would be measured for one class only.
    for benchmark in smoke.classes():
        if hasattr(benchmark, "setup_cache"):
            assert "setup_cache" in vars(benchmark), benchmark


@pytest.mark.usefixtures("tiny")
def test_a_peer_that_agrees_gives_a_ratio_with_its_spread_and_both_thread_counts(monkeypatch):
    pretend(monkeypatch, right)
    entry = record.measured([(CASE, "numpy")])[CASE.label, "numpy"]
    assert entry["ratio"] > 0
    assert entry["ratio_spread"][0] <= entry["ratio"] <= entry["ratio_spread"][1]
    assert entry["threads"]["other"] == 1
    assert 1 <= entry["threads"]["ours"] <= machine.THREADS
    assert versus_peers.figure({("a", "b"): entry}, "a", "b") is entry


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda data: right(data) + 1,
        lambda data: right(data)[:1],
        lambda data: right(data) * np.nan,
        lambda data: np.broadcast_to(right(data)[..., :1], data.x.shape),
    ],
    ids=["off by one", "another shape", "NaN", "another channel"],
)
def test_a_peer_that_disagrees_is_an_error_without_a_figure(monkeypatch, wrong):
    pretend(monkeypatch, wrong)
    seen = record.measured([(CASE, "numpy")])
    assert set(seen[CASE.label, "numpy"]) == {"error"}
    with pytest.raises(ValueError, match="got"):
        versus_peers.Training().setup(seen, CASE.label, "numpy")


@pytest.mark.usefixtures("tiny")
def test_a_peer_that_fails_is_an_error_without_a_figure(monkeypatch):
    def fail(_):
        raise RuntimeError("out of memory")

    pretend(monkeypatch, fail)
    seen = record.measured([(CASE, "numpy")])
    assert seen[CASE.label, "numpy"] == {"error": "RuntimeError: out of memory"}
    with pytest.raises(ValueError, match="out of memory"):
        versus_memory.TrainingOverCopy().setup(seen, CASE.label, "numpy")


@pytest.mark.usefixtures("tiny")
def test_a_peer_that_is_not_installed_is_a_skip_without_a_figure(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "asv_bench.peers.torch_", raising=False)
    seen = record.measured([(CASE, "torch")])
    assert set(seen[CASE.label, "torch"]) == {"missing"}
    outcome = smoke.run(versus_peers.Training, "track_times_as_fast", (seen,), (CASE.label, "torch"))
    assert set(outcome) == {"skip"}
    assert "torch" in outcome["skip"]


@pytest.mark.usefixtures("tiny")
def test_a_yardstick_copies_and_reads():
    seen = record.measured([(cases.TRAINING_OUT[0], "copy"), (cases.MOMENTS[0], "read")])
    assert all(entry["ratio"] > 0 for entry in seen.values())


@pytest.mark.usefixtures("tiny")
def test_a_yardstick_of_another_dtype_is_an_error():
    case = cases.HALF["float16"][0]
    assert set(record.measured([(case, "copy")])[case.label, "copy"]) == {"error"}


def test_pairs_are_measured_in_turn_a_b_b_a(monkeypatch):
    for name, value in (("LEAST", 2), ("MOST", 2), ("SECONDS", 0.0), ("SETTLE", 0.0), ("SAMPLE", 0.0)):
        monkeypatch.setattr(paired, name, value)
    calls = []
    result = paired.measure(lambda: calls.append("A"), lambda: calls.append("B"))
    assert result["pairs"] == 4
    # Each sample is preceded by a call that does not count.
    assert "".join(calls)[-16:] == "AABBBBAA" * 2


@pytest.mark.usefixtures("tiny")
def test_a_pair_that_comes_twice_is_measured_once(monkeypatch):
    pretend(monkeypatch, right)
    told = []
    record.measured([(CASE, "numpy"), (CASE, "numpy")], told.append)
    assert len(told) == 1


def test_difference_is_in_units_of_the_largest_value():
    assert contestant.difference((np.array([100.0, 1.0]),), (np.array([101.0, 1.0]),)) == pytest.approx(0.01)
    assert contestant.difference((np.array([0.0]),), (np.array([0.5]),)) == 0.5
    assert contestant.difference((np.array([0.0]),), (np.array([np.nan]),)) == math.inf


def test_sized_keeps_the_rank_and_fits():
    assert cases.sized((32, 64, 56, 56)) == (32, 64, 56, 56)
    small = cases.sized((128, 224, 224, 3), 4096)
    assert len(small) == 4
    assert np.prod(small) <= 4096


def entry(ratio):
    return {"ratio": ratio, "ratio_spread": [ratio, ratio]}


A, B = cases.TRAINING[:2]
PAIRS = ((A, "torch"), (B, "torch"))


@pytest.mark.parametrize(
    ("goal", "figure", "met"),
    [
        (goals.Goal("", 4.0, PAIRS, "geometric mean"), 4.0, True),
        (goals.Goal("", 4.1, PAIRS, "geometric mean"), 4.0, False),
        (goals.Goal("", 1.9, PAIRS, "slowest"), 2.0, True),
        (goals.Goal("", 0.5, PAIRS, "largest", inverse=True), 0.5, True),
        (goals.Goal("", 0.4, PAIRS, "largest", inverse=True), 0.5, False),
    ],
)
def test_a_goal_is_judged_over_all_its_pairs(goal, figure, met):
    row = goal.judge({(A.label, "torch"): entry(2.0), (B.label, "torch"): entry(8.0)})
    assert row["figure"] == pytest.approx(figure)
    # approx above: the geometric mean of 2 and 8 may be the last bit off 4
    assert row["met"] is met or abs(row["figure"] - goal.goal) < 1e-9


@pytest.mark.parametrize("other", [{"missing": "No module named 'torch'"}, {"error": "ValueError: disagrees"}, None])
def test_a_goal_with_a_pair_that_was_not_measured_is_not_met(other):
    seen = {(A.label, "torch"): entry(9.0)} | ({} if other is None else {(B.label, "torch"): other})
    row = goals.Goal("", 1.0, PAIRS, "slowest").judge(seen)
    assert row["figure"] is None
    assert row["met"] is None
    assert row["reasons"]
    assert "**not measured**" in targets.table([row])


def test_a_start_is_judged_in_seconds():
    goal = goals.StartGoal("", 3.0, startup.cold.__name__)
    assert goal.judge({"cold": [9.0, 2.0, 1.0]})["met"] is True
    assert goal.judge({"cold": [9.0, 4.0, 1.0]})["met"] is False
    assert goal.judge({})["met"] is None


def test_the_goals_have_rows_of_both_kinds_for_a_cache_of_32_mib(monkeypatch):
    monkeypatch.setattr(machine, "cache_bytes", lambda: 32 * 2**20)
    assert all(goal.pairs for goal in goals.goals() if isinstance(goal, goals.Goal))


def test_labels_are_unique_and_stable():
    groups = [v if type(v) is tuple else (v,) for v in vars(cases).values()]
    every = {case for group in groups for case in group if isinstance(case, Case)}
    assert len(every) > 80
    assert len({case.label for case in every}) == len(every)
    assert CASE.label == "batch_norm (32,56,56,64) -1"


def test_the_import_is_measured_beside_numpys(monkeypatch):
    monkeypatch.setattr(startup, "RUNS", 1)
    times = startup.imports()
    assert len(times["keepnorm"]) == len(times["numpy"]) == 2
    assert starting.Starting().track_import_over_numpy(times) > 0


def test_asv_reads_the_configuration():
    config = pytest.importorskip("asv.config", reason="asv is in the bench group")
    read = config.Config.load(str(ROOT / "asv_bench" / "asv.conf.json"))
    assert (ROOT / "asv_bench" / read.benchmark_dir / "operations.py").is_file()
    assert read.launch_method == "spawn"


def made_up():
    figures = {"ours": 1e-3, "other": 4e-3, "ratio": 4.0, "ratio_spread": [3.5, 4.5], "pairs": 10, "difference": 1e-6}
    whole = figures | {"threads": {"ours": 2, "other": 2}, "bytes": 10**8}
    rows = ((A, "torch"), (A, "jax"), (cases.TRAINING_OUT[4], "copy"), (cases.BACKWARD[0], "torch"))
    entries = [{"case": case.label, "against": name, **whole} for case, name in rows]
    entries.append({"case": B.label, "against": "torch", "missing": "No module named 'torch'"})
    seen = {(case.label, name): whole for case, name in rows}
    return {
        "machine": machine.description() | {"load": 0.1},
        "tiny": False,
        "minutes": 1.0,
        "goals": [goals.Goal("training forward", 4.0, ((A, "torch"),), "slowest").judge(seen)],
        "entries": entries,
        "startup": {"cold": [1.0, 2.0], "warm": [0.2]},
    }


def test_the_report_has_the_tables_the_plot_and_no_paths(tmp_path):
    pytest.importorskip("matplotlib")
    from asv_bench import report

    source = tmp_path / "record.json"
    source.write_text(json.dumps(made_up()))
    report.main([str(source), "--folder", str(tmp_path)])
    text = (tmp_path / "cpu.md").read_text()
    assert "| training forward | 4.00 x (slowest) | at least 4 x | met |" in text
    assert "4.00 x (3.50 to 4.50)" in text
    assert "0.25 x (0.22 to 0.29)" in text
    assert "not measured: No module named 'torch'" in text
    assert not re.search(r"/(home|root|tmp|work|usr)\b", text)
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")


def test_a_rehearsal_is_not_reported(tmp_path):
    from asv_bench import report

    source = tmp_path / "record.json"
    source.write_text(json.dumps(made_up() | {"tiny": True}))
    with pytest.raises(SystemExit, match="--tiny"):
        report.main([str(source), "--folder", str(tmp_path)])


def test_a_seed_draws_the_same_rows_and_every_operation_within_the_sizes():
    rows = sweep.draw(3, 400)
    assert rows == sweep.draw(3, 400) != sweep.draw(4, 400)
    assert {case.operation for case in rows} == {*sweep.FORWARD, *sweep.TRIPS}
    assert all(sweep.LEAST <= math.prod(case.shape) <= sweep.MOST for case in rows)
    assert all(case.shape[case.axis] % case.groups == 0 for case in rows)


def swept(ratios, others):
    """A record of one random case for each ratio, and the goals about it."""
    rows = sweep.draw(1, len(ratios))
    entries = {(case.label, "torch"): {"ratio": r, "other": o} for case, r, o in zip(rows, ratios, others, strict=True)}
    return [goal.judge(entries) for goal in goals.sweep(rows)], rows, entries


def test_the_sweep_is_judged_by_its_mean_its_share_of_slower_rows_and_its_slowest():
    (mean, share, long, short, *kinds), *_ = swept([4.0, 4.0, 0.9, 0.6], [1e-3, 1e-3, 1e-3, 1e-5])
    assert mean["figure"] == pytest.approx((4.0 * 4.0 * 0.9 * 0.6) ** 0.25)
    assert (share["figure"], share["met"]) == (pytest.approx(100 / 3), False)
    assert (long["figure"], long["met"]) == (0.9, True)
    assert (short["figure"], short["met"]) == (0.6, True)
    assert kinds


def test_what_pytorch_cannot_do_is_left_out_of_the_sweep_and_what_fails_is_not():
    _, rows, entries = swept([4.0, 4.0], [1e-3, 1e-3])
    key = rows[0].label, "torch"
    entries[key] = {"error": "NotImplementedError: no such kernel"}
    assert goals.sweep(rows)[0].judge(entries)["figure"] == 4.0
    entries[key] = {"error": "ValueError: disagrees"}
    assert goals.sweep(rows)[0].judge(entries)["figure"] is None
