"""Run every benchmark class once at a tiny size, as asv would: `python -m asv_bench.smoke` prints a line of JSON for each.

Each value of each parameter is used at least once, not each combination; of the classes that compare, the first case.
A figure that comes out of this means nothing; that one comes out means that the benchmark works.
"""

import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any

from asv_bench import benchmarks, targets

KINDS = ("time_", "peakmem_", "track_")


def classes() -> Iterator[type]:
    """The classes that asv finds: those whose names do not begin with an underscore."""
    for module in pkgutil.iter_modules(benchmarks.__path__, "asv_bench.benchmarks."):
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if found.__module__ == module.name and not found.__name__.startswith("_") and methods(found):
                yield found


def methods(benchmark: type) -> list[str]:
    return [name for name in dir(benchmark) if name.startswith(KINDS)]


def combinations(benchmark: type) -> list[tuple[Any, ...]]:
    """Each value of each parameter at least once, the others being the first ones."""
    params = getattr(benchmark, "params", ())
    if hasattr(benchmark, "rows"):
        params = (params[0][:1], *params[1:])
    first = tuple(values[0] for values in params)
    changed = [(*first[:i], value, *first[i + 1 :]) for i, values in enumerate(params) for value in values[1:]]
    return [first, *changed]


def outcomes(benchmark: Any) -> Iterator[dict[str, Any]]:
    """Run one class: its cache once, then each method, with setup and teardown around it."""
    if hasattr(benchmark, "rows"):
        benchmark = type(benchmark.__name__, (benchmark,), {"rows": benchmark.rows[:1]})
    cache = (benchmark().setup_cache(),) if hasattr(benchmark, "setup_cache") else ()
    for method in methods(benchmark):
        for chosen in combinations(benchmark):
            name = {"benchmark": f"{benchmark.__name__}.{method}", "params": list(chosen)}
            yield name | run(benchmark, method, cache, chosen)


def run(benchmark: Any, method: str, cache: tuple[Any, ...], chosen: tuple[Any, ...]) -> dict[str, Any]:
    """A value, a skip or an error: what asv would show."""
    instance = benchmark()
    try:
        if hasattr(instance, "setup"):
            instance.setup(*cache, *chosen)
    except NotImplementedError as reason:
        return {"skip": str(reason)}
    except ValueError as reason:
        return {"error": str(reason)}
    try:
        value = getattr(instance, method)(*cache, *chosen)
    finally:
        if hasattr(instance, "teardown"):
            instance.teardown(*cache, *chosen)
    return {"value": float(value)} if method.startswith("track_") else {"value": None}


def main() -> None:
    targets.shrink()
    for benchmark in classes():
        for outcome in outcomes(benchmark):
            print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    sys.exit(main())
