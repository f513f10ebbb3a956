"""The promised speeds, as data: which pairs each figure comes from, how they become one number, and what it must be."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from asv_bench import cases, machine, startup
from asv_bench.cases import Case
from asv_bench.paired import geometric_mean
from asv_bench.record import Record
from asv_bench.sweep import draw

# A row of the sweep is slower than PyTorch below this; a row that takes PyTorch less than LONG is mostly Python's time.
SLOWER, LONG = 0.95, 50e-6

# The sweep that `targets` measures; its page draws another seed each time.
SWEEP_SEED, SWEEP_ROWS = 334, 80


def share_slower(ratios: list[float]) -> float:
    """The share of rows in which the other is faster, in percent."""
    return 100 * sum(ratio < SLOWER for ratio in ratios) / len(ratios)


SUMMARIES: dict[str, Callable[[list[float]], float]] = {
    "geometric mean": geometric_mean,
    "slowest": min,
    "largest": max,
    "share": share_slower,
}


@dataclass(frozen=True)
class Goal:
    """One row of the table. `inverse`: the figure is our time over the yardstick's, which must be at most `goal`."""

    what: str
    goal: float
    pairs: tuple[tuple[Case, str], ...]
    summary: str
    inverse: bool = False

    @property
    def unit(self) -> str:
        return "x"

    def judge(self, record: Record) -> dict[str, Any]:
        """The row of the table. It has a figure only if every one of its pairs was measured."""
        entries = [record.get((case.label, name)) for case, name in self.pairs]
        reasons = sorted({_reason(entry) for entry in entries if entry is None or "ratio" not in entry})
        if not entries:
            reasons = ["no row is larger than this machine's cache"]
        figure = None
        if not reasons:
            ratios = [1 / entry["ratio"] if self.inverse else entry["ratio"] for entry in entries if entry]
            figure = SUMMARIES[self.summary](ratios)
        return _row(self.what, figure, self.goal, self.unit, self.inverse, reasons, self.summary)


@dataclass(frozen=True)
class SweepGoal(Goal):
    """One row about the sweep, without what PyTorch cannot do; `rows` are all, those that take PyTorch LONG, or the rest."""

    rows: str = "all"

    def judge(self, record: Record) -> dict[str, Any]:
        entries = [record.get((case.label, name)) or {"error": "not measured"} for case, name in self.pairs]
        able = [entry for entry in entries if not str(entry.get("error", "")).startswith("NotImplementedError")]
        reasons = sorted({_reason(entry) for entry in able if "ratio" not in entry})
        chosen = [
            e["ratio"] for e in able if "ratio" in e and (self.rows == "all" or (e["other"] >= LONG) == (self.rows == "long"))
        ]
        figure = SUMMARIES[self.summary](chosen) if chosen and not reasons else None
        return _row(self.what, figure, self.goal, self.unit, self.inverse, reasons or ["no such row"], self.summary)

    @property
    def unit(self) -> str:
        return "%" if self.summary == "share" else "x"


@dataclass(frozen=True)
class StartGoal:
    """A row that is measured in fresh processes, in seconds; `kind` is a function of startup.py."""

    what: str
    goal: float
    kind: str

    def judge(self, seconds: dict[str, list[float]]) -> dict[str, Any]:
        times = seconds.get(self.kind)
        reasons = [] if times else ["not measured"]
        return _row(self.what, median(times) if times else None, self.goal, "s", True, reasons, "median")


def goals() -> list[Goal | StartGoal]:
    """All rows, in the order of the table. Which rows are larger than the cache depends on the machine."""
    large = [case for case in cases.TRAINING_OUT if case.nbytes >= machine.large_bytes()]
    reduced = [case for case in large if case.inner_is_reduced]
    kept = [case for case in large if not case.inner_is_reduced]
    affine = [case for case in cases.AFFINE_OUT if case.nbytes >= machine.large_bytes()]
    moments = [case for case in cases.MOMENTS if case.nbytes >= machine.large_bytes()]
    norms = cases.LAYER + cases.RMS
    mean, slowest, largest = "geometric mean", "slowest", "largest"
    return [
        Goal("training forward over PyTorch eager", 4.0, _against(cases.TRAINING, "torch"), mean),
        Goal("training forward over JAX jit", 2.5, _against(cases.TRAINING, "jax"), mean),
        Goal(
            "training forward over the best of PyTorch eager, torch.compile and JAX jit",
            1.0,
            _against(cases.TRAINING, "torch", "compile", "jax"),
            slowest,
        ),
        Goal("training forward, out=, over a copy: inner axis reduced", 1.3, _against(reduced, "copy"), largest, inverse=True),
        Goal("training forward, out=, over a copy: inner axis kept", 1.7, _against(kept, "copy"), largest, inverse=True),
        Goal("inference affine, out=, over a copy", 1.15, _against(affine, "copy"), largest, inverse=True),
        Goal("moments over reading the array once", 1.5, _against(moments, "read"), largest, inverse=True),
        Goal("layer norm and RMS norm over PyTorch", 1.4, _against(norms, "torch"), mean),
        Goal("layer norm and RMS norm over PyTorch, each", 1.0, _against(norms, "torch"), slowest),
        Goal("training forward of wide rows over PyTorch, each", 1.0, _against(cases.WIDE, "torch"), slowest),
        Goal("small public calls over F.batch_norm", 1.0, _against(cases.SMALL, "torch"), slowest),
        Goal(
            "moments of (128,224,224,3), mean 100, over the best of PyTorch, JAX jit, numbagg, dask and scikit-learn",
            5.0,
            _against([cases.MOMENTS_OF_IMAGES], "torch", "jax", "numbagg", "dask", "sklearn"),
            slowest,
        ),
        Goal("moments of uint8 over astype(float32) and NumPy", 50.0, _against([cases.MOMENTS_OF_BYTES], "numpy"), slowest),
        Goal("training forward of float16 over PyTorch", 2.0, _against(cases.HALF["float16"], "torch"), mean),
        Goal("training forward of bfloat16 over PyTorch", 2.0, _against(cases.HALF["bfloat16"], "torch"), mean),
        Goal("backward over PyTorch's backward", 2.0, _against(cases.BACKWARD, "torch"), mean),
        Goal("backward of wide rows over PyTorch's backward, each", 1.0, _against(cases.BACKWARD_WIDE, "torch"), slowest),
        Goal("backward of layer norm over PyTorch's backward", 1.0, _against(cases.LAYER_BACKWARD, "torch"), mean),
        Goal(
            "autograd forward and backward with our kernels over F.batch_norm",
            1.0,
            _against(cases.ROUND_TRIP, "torch"),
            slowest,
        ),
        Goal(
            "inference, out=, over a copy",
            1.1,
            _against([case for case in cases.INFERENCE_OUT if case.nbytes >= machine.large_bytes()], "copy"),
            largest,
            inverse=True,
        ),
        Goal("moments of one small image over OpenCV", 1.0, _against(cases.SMALL_IMAGES, "opencv"), slowest),
        Goal("moments with a mask over numbagg's of NaN", 1.0, _against(cases.MASKED, "numbagg"), slowest),
        *sweep(draw(SWEEP_SEED, SWEEP_ROWS)),
        StartGoal("cold compile of the first normalize", 3.0, startup.cold.__name__),
        StartGoal("warm first normalize in a new process", 0.3, startup.warm.__name__),
    ]


def sweep(rows: list[Case]) -> list[Goal | StartGoal]:
    """The rows of the table about random cases beside PyTorch."""
    mean, slowest = "geometric mean", "slowest"
    pairs = _against(rows, "torch")
    kinds = [
        SweepGoal(f"sweep: {operation.replace('_', ' ')}", 1.3, tuple(p for p in pairs if p[0].operation == operation), mean)
        for operation in dict.fromkeys(case.operation for case in sorted(rows))
    ]
    return [
        SweepGoal(f"sweep of {len(rows)} random rows over PyTorch", 2.5, pairs, mean),
        SweepGoal("sweep: rows of 50 us and more slower than PyTorch", 2.0, pairs, "share", inverse=True, rows="long"),
        SweepGoal("sweep: rows of 50 us and more, each", 0.8, pairs, slowest, rows="long"),
        SweepGoal("sweep: shorter rows, each", 0.5, pairs, slowest, rows="short"),
        *kinds,
    ]


def _against(rows: Any, *names: str) -> tuple[tuple[Case, str], ...]:
    return tuple((case, name) for case in rows for name in names)


def _reason(entry: dict[str, Any] | None) -> str:
    return "not measured" if entry is None else str(entry.get("missing") or entry["error"])


def _row(
    what: str, figure: float | None, goal: float, unit: str, at_most: bool, reasons: list[str], summary: str
) -> dict[str, Any]:
    met = None if figure is None else (figure <= goal if at_most else figure >= goal)
    return {
        "what": what,
        "figure": figure,
        "goal": goal,
        "unit": unit,
        "at_most": at_most,
        "met": met,
        "summary": summary,
        "reasons": reasons,
    }
