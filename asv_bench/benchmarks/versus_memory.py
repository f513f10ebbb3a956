"""How close to the memory's own speed: our time over that of a two-thread copy, or of reading the array once."""

from typing import Any, ClassVar

from asv_bench import cases, machine
from asv_bench.benchmarks.versus_peers import figure
from asv_bench.cases import Case
from asv_bench.record import Record, measured


class _Limits:
    """The tracks; a class below says which cases and which limit."""

    rows: ClassVar[tuple[Case, ...]]
    peers: ClassVar[tuple[str, ...]]
    param_names = ("case", "limit")
    timeout = 120

    @classmethod
    def measure(cls) -> Record:
        machine.pin()
        return measured((case, name) for case in cls.rows for name in cls.peers)

    def setup(self, record: Record, label: str, name: str) -> None:
        self.entry = figure(record, label, name)

    def track_times_the_limit(self, *_: Any) -> float:
        return 1 / float(self.entry["ratio"])

    def track_throughput(self, *_: Any) -> float:
        """Bytes of x for each second: what a user's array needs, however often it is read."""
        return float(self.entry["bytes"]) / float(self.entry["ours"]) / 1e9

    def track_limit_throughput(self, *_: Any) -> float:
        return float(self.entry["bytes"]) / float(self.entry["other"]) / 1e9

    track_times_the_limit.unit = "x"  # type: ignore[attr-defined]
    track_throughput.unit = track_limit_throughput.unit = "GB/s"  # type: ignore[attr-defined]


class TrainingOverCopy(_Limits):
    rows, peers = cases.TRAINING_OUT, ("copy",)
    params = (tuple(case.label for case in rows), peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 1800  # type: ignore[attr-defined]


class InferenceOverCopy(_Limits):
    rows, peers = cases.AFFINE_OUT + cases.INFERENCE_OUT, ("copy",)
    params = (tuple(case.label for case in rows), peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 1800  # type: ignore[attr-defined]


class MomentsOverRead(_Limits):
    rows, peers = cases.MOMENTS, ("read",)
    params = (tuple(case.label for case in rows), peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 1800  # type: ignore[attr-defined]
