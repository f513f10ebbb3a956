"""The record: every pair measured once, as plain data that asv can pickle and a report can read.

An entry has the figures of ``paired.measure`` with ``difference`` and ``threads``; or ``missing``, if the peer is not
installed; or ``error``, if it disagrees or fails. There is no figure in the last two.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from asv_bench import contestant, machine, ours, paired, peers
from asv_bench.cases import Case, Data, arrays

Entry = dict[str, Any]
Record = dict[tuple[str, str], Entry]


def measured(pairs: Iterable[tuple[Case, str]], tell: Any = None) -> Record:
    """Measure each (case, peer or yardstick) once, case by case, so that an array is made once.

    Parameters
    ----------
    pairs : of (Case, name)
        A pair that comes twice is measured once.
    tell : function of (str,), optional
        Is told what was measured, for a line of progress.
    """
    names: dict[Case, list[str]] = {}
    for case, name in pairs:
        wanted = names.setdefault(case, [])
        if name not in wanted:
            wanted.append(name)
    record: Record = {}
    with machine.our_threads():
        for case, wanted in names.items():
            data = arrays(case)
            for name in wanted:
                entry = record[case.label, name] = compare(data, name)
                if tell:
                    tell(f"{case.label} against {peers.TITLES.get(name, name)}: {sentence(entry)}")
    return record


def compare(data: Data, name: str) -> Entry:
    """One entry: both sides prepared, their answers compared, then measured in turn."""
    try:
        ours_side = ours.prepare(data)
        if name in peers.YARDSTICKS:
            other, threads, gap = peers.yardstick(name, data), machine.our_thread_count(), _check_yardstick(name, data)
        else:
            side = peers.prepare(name, data)
            gap = contestant.agree(
                ours_side.fetch(ours_side.call()), side.fetch(side.call()), data.case.dtype, peers.TITLES[name]
            )
            other, threads = side.call, side.threads
        figures = paired.measure(ours_side.call, other)
    except ImportError as reason:
        return {"missing": str(reason)}
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as reason:
        return {"error": f"{type(reason).__name__}: {reason}"}
    return figures | {"difference": gap, "threads": {"ours": ours_side.threads, "other": threads}, "bytes": data.x.nbytes}


def sentence(entry: Entry) -> str:
    """What an entry says, in a few words."""
    if "ratio" not in entry:
        return f"not measured: {entry.get('missing') or entry['error']}"
    low, high = entry["ratio_spread"]
    return f"{entry['ratio']:.2f} x ({low:.2f} to {high:.2f}), ours {entry['ours'] * 1e3:.3f} ms"


def _check_yardstick(name: str, data: Data) -> float:
    """A copy must copy and a sum must sum, for a yardstick that does less would flatter."""
    result = peers.yardstick(name, data)()
    if name == "copy":
        return contestant.agree((data.x.reshape(-1),), (result,), data.case.dtype, peers.TITLES[name])
    # float32 sums wander; the mean is what they must agree on.
    exact = np.asarray(data.x.mean(dtype=np.float64))
    return contestant.agree((exact,), (np.asarray(result / data.x.size),), data.case.dtype, peers.TITLES[name])
