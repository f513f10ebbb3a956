"""What a new process waits for: the import, the first call with an empty cache folder, the first call with a full one."""

from statistics import median

from asv_bench import machine, startup

Times = dict[str, list[float]]


class Starting:
    timeout = 120

    def setup_cache(self) -> Times:
        machine.pin()
        return {"cold": startup.cold(), "warm": startup.warm(), **startup.imports()}

    setup_cache.timeout = 900  # type: ignore[attr-defined]

    def track_cold_first_call(self, times: Times) -> float:
        return median(times["cold"]) * 1e3

    def track_warm_first_call(self, times: Times) -> float:
        return median(times["warm"]) * 1e3

    def track_import(self, times: Times) -> float:
        return median(times["keepnorm"]) * 1e3

    def track_import_over_numpy(self, times: Times) -> float:
        """`import keepnorm`, which imports NumPy, over `import numpy`."""
        return median(ours / numpy for ours, numpy in zip(times["keepnorm"], times["numpy"], strict=True))

    track_cold_first_call.unit = track_warm_first_call.unit = track_import.unit = "ms"  # type: ignore[attr-defined]
    track_import_over_numpy.unit = "x"  # type: ignore[attr-defined]
