"""How many times as fast as each peer. Each class measures once, in `setup_cache`; its tracks read that record.

A peer that is not installed is a skip; one that disagrees or fails is an error with its reason. Neither has a figure.
"""

from typing import Any, ClassVar

from asv_bench import cases, machine
from asv_bench.cases import Case
from asv_bench.peers import peers_of
from asv_bench.record import Entry, Record, measured


def figure(record: Record, label: str, name: str) -> Entry:
    """The entry of a pair that was measured.

    Raises
    ------
    NotImplementedError
        asv's word for a skip: the peer is not installed.
    ValueError
        The peer disagrees with keepnorm, or failed.
    """
    entry = record[label, name]
    if "missing" in entry:
        raise NotImplementedError(entry["missing"])
    if "error" in entry:
        raise ValueError(entry["error"])
    return entry


class _Pairs:
    """The tracks of every comparison; a class below says which cases and which peers.

    setup_cache is written out in each class: asv tells caches apart by the line where they are made.
    """

    rows: ClassVar[tuple[Case, ...]]
    peers: ClassVar[tuple[str, ...]]
    param_names = ("case", "against")
    timeout = 120

    @classmethod
    def measure(cls) -> Record:
        machine.pin()
        return measured((case, name) for case in cls.rows for name in cls.peers)

    def setup(self, record: Record, label: str, name: str) -> None:
        self.entry = figure(record, label, name)

    def track_times_as_fast(self, *_: Any) -> float:
        return float(self.entry["ratio"])

    def track_times_as_fast_lower_quartile(self, *_: Any) -> float:
        return float(self.entry["ratio_spread"][0])

    def track_times_as_fast_upper_quartile(self, *_: Any) -> float:
        return float(self.entry["ratio_spread"][1])

    def track_ours(self, *_: Any) -> float:
        return float(self.entry["ours"]) * 1e3

    def track_other(self, *_: Any) -> float:
        return float(self.entry["other"]) * 1e3

    def track_our_threads(self, *_: Any) -> int:
        return int(self.entry["threads"]["ours"])

    def track_other_threads(self, *_: Any) -> int:
        return int(self.entry["threads"]["other"])

    track_times_as_fast.unit = "x"  # type: ignore[attr-defined]
    track_times_as_fast_lower_quartile.unit = "x"  # type: ignore[attr-defined]
    track_times_as_fast_upper_quartile.unit = "x"  # type: ignore[attr-defined]
    track_ours.unit = track_other.unit = "ms"  # type: ignore[attr-defined]
    track_our_threads.unit = track_other_threads.unit = "threads"  # type: ignore[attr-defined]


def _params(rows: tuple[Case, ...], peers: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(case.label for case in rows), peers


class Training(_Pairs):
    rows, peers = cases.TRAINING, peers_of("batch_norm")
    params = _params(rows, peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


class Wide(_Pairs):
    """Batches of features, and what comes before the last layer of a network for images."""

    rows, peers = cases.WIDE + cases.BACKWARD_WIDE, ("torch",)
    params = _params(rows, peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


class Half(_Pairs):
    rows, peers = cases.HALF["float16"] + cases.HALF["bfloat16"], ("torch",)
    params = _params(rows, peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


class Inference(_Pairs):
    rows, peers = cases.INFERENCE, peers_of("inference")
    params = _params(rows, peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


class LayerNorm(_Pairs):
    rows, peers = cases.LAYER, peers_of("layer_norm")
    params = _params(rows, peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


class RMSNorm(_Pairs):
    rows, peers = cases.RMS, peers_of("rms_norm")
    params = _params(rows, peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


class Moments(_Pairs):
    """With mean 0, with mean 100 as in data, where Keras's float32 sums disagree and so are an error, and of bytes."""

    rows = (Case("moments", *cases.IMAGES), cases.MOMENTS_OF_IMAGES, cases.MOMENTS_OF_BYTES)
    peers = peers_of("moments")
    params = _params(rows, peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


class SmallCalls(_Pairs):
    rows, peers = cases.SMALL, ("torch", "jax", "numpy")
    params = _params(rows, peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


class Backward(_Pairs):
    rows, peers = cases.BACKWARD, peers_of("backward")
    params = _params(rows, peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


class LayerBackward(_Pairs):
    rows, peers = cases.LAYER_BACKWARD, peers_of("layer_backward")
    params = _params(rows, peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


class RoundTrip(_Pairs):
    """Forward and backward through PyTorch's autograd, with our kernels and with PyTorch's."""

    rows, peers = cases.ROUND_TRIP, ("torch",)
    params = _params(rows, peers)

    def setup_cache(self) -> Record:
        return self.measure()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]
