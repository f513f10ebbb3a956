"""Random operations on random shapes beside every peer that can do them: `python -m asv_bench.sweep --seed 7 --rows 80`.

The promised shapes are a few; users have all others. A row draws an operation, a layout, a dtype and a shape. Each peer is
measured beside ours in turn, two threads on both sides. The exit status is 0 if PyTorch is beaten as goals.py says.
`--peers` chooses other peers than PyTorch eager, or `all` that are installed.
"""

import argparse
import random
import sys
from collections.abc import Iterator

from asv_bench import machine
from asv_bench.cases import Case

CHANNELS = (3, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 2048)
SIDES = (1, 2, 4, 7, 8, 13, 14, 16, 28, 32, 56, 64, 112, 128, 224)
BATCHES = (1, 2, 3, 4, 8, 16, 32, 64, 128)
WIDTHS = (32, 64, 128, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048, 4096, 5120, 8192)
GROUPS = (1, 2, 4, 8, 16, 32)
DTYPES = {"float32": 8, "float64": 1, "float16": 1}

FORWARD = ("batch_norm", "inference", "layer_norm", "rms_norm", "group_norm", "instance_norm", "moments")
TRIPS = ("round_trip", "layer_trip", "rms_trip", "group_trip", "instance_trip")
TRIP_SHARE = 0.35  # of the rows go forward and backward through PyTorch's autograd
LAST_SHARE = 0.4  # of the images have their channel last

# Values of an array: from a call that is all overhead to one that is all memory.
LEAST, MOST = 2_000, 16_000_000


def draw(seed: int, rows: int) -> list[Case]:
    """The cases of a seed, the same on every machine."""
    generator = random.Random(seed)
    return [_case(generator) for _ in range(rows)]


def _case(draw: random.Random) -> Case:
    operation = draw.choice(TRIPS if draw.random() < TRIP_SHARE else FORWARD)
    (dtype,) = draw.choices(tuple(DTYPES), tuple(DTYPES.values()))
    if operation.startswith(("layer", "rms")):
        return Case(operation, next(_rows(draw)), -1, dtype)
    n, c, h, w = next(shape for shape in _images(draw) if shape[2] * shape[3] > 1 or not operation.startswith("instance"))
    groups = draw.choice([g for g in GROUPS if c % g == 0]) if operation.startswith("group") else 1
    last = draw.random() < LAST_SHARE
    return Case(operation, (n, h, w, c) if last else (n, c, h, w), -1 if last else 1, dtype, groups=groups)


def _rows(draw: random.Random) -> Iterator[tuple[int, ...]]:
    while True:
        shape = int(2 ** draw.uniform(0, 16)), draw.choice(WIDTHS)
        if LEAST <= shape[0] * shape[1] <= MOST:
            yield shape


def _images(draw: random.Random) -> Iterator[tuple[int, ...]]:
    while True:
        n, c, h, w = draw.choice(BATCHES), draw.choice(CHANNELS), draw.choice(SIDES), draw.choice(SIDES)
        if LEAST <= n * c * h * w <= MOST and n * h * w > 1:
            yield n, c, h, w


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m asv_bench.sweep", description=__doc__)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--rows", type=int, default=80)
    options.add_argument("--peers", nargs="+", default=["torch"], metavar="PEER", help="names of asv_bench.peers, or all")
    chosen = options.parse_args(arguments)
    machine.pin()
    from asv_bench import goals, peers, record, targets

    cases = draw(chosen.seed, chosen.rows)
    names = {case: peers.peers_of(case.operation) for case in cases}
    if chosen.peers != ["all"]:
        names = {case: tuple(n for n in able if n in chosen.peers) for case, able in names.items()}
    seen = record.measured(((case, name) for case in cases for name in names[case]), lambda line: print(line, flush=True))
    rows = [goal.judge(seen) for goal in goals.sweep(cases)]
    slowest = sorted((entry["ratio"], f"{case} against {name}") for (case, name), entry in seen.items() if "ratio" in entry)
    print("\nslowest:", *(f"{ratio:7.2f} x  {what}" for ratio, what in slowest[:10]), sep="\n")
    for name in dict.fromkeys(name for _, name in seen):
        ratios = [entry["ratio"] for (_, peer), entry in seen.items() if peer == name and "ratio" in entry]
        if ratios:
            print(f"{peers.TITLES[name]}: {goals.SUMMARIES['geometric mean'](ratios):.2f} x over {len(ratios)} rows")
    print(f"\nseed {chosen.seed}, {chosen.rows} rows\n{targets.table(rows)}")
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
