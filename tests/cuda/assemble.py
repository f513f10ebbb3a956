"""Compile the CUDA kernels to PTX, without a GPU and without the simulator, and say what they hold, as JSON on stdout.

    python tests/cuda/assemble.py 9.0

Run in a process of its own: numba.cuda is either itself or its simulator, never both.
"""

import json
import re
import sys
from types import SimpleNamespace

# Reduction, elementwise step, dtypes: every kernel that a common call launches.
KERNELS = {
    "moments": ("moments", "", {"x": "float32"}, 4),
    "moments of halves": ("moments", "", {"x": "float16"}, 8),
    "moments of doubles": ("moments", "", {"x": "float64"}, 2),
    "inference": ("", "forward", {"x": "float32", "y": "float32", "w": "float32"}, 4),
    "inference in bfloat16": ("", "forward", {"x": "bfloat16", "y": "bfloat16", "w": "float32"}, 8),
    "images": ("", "forward", {"x": "uint8", "y": "float32"}, 4),
    "training": ("moments", "forward", {"x": "float32", "y": "float32", "w": "float32"}, 4),
    "sums of gradients": ("grads", "", {"x": "float32", "z": "float32"}, 4),
    "sums of parameters": ("swapped", "", {"x": "float32", "z": "float32"}, 4),
    "backward": ("", "backward", {"x": "float32", "y": "float32", "z": "float32", "w": "float32"}, 4),
    "backward in float16": ("", "backward", {"x": "float16", "y": "float16", "z": "float16", "w": "float32"}, 8),
    "masked": ("masked", "", {"x": "float32"}, 1),
}


def innermost(ptx):
    """The instructions of every loop that has no other inside: between a label and a branch back to it."""
    lines = [line.strip() for line in ptx.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\$L\w+:", line)}
    spans = []
    for i, line in enumerate(lines):
        branch = re.search(r"bra(?:\.uni)?\s+(\$L\w+);", line)
        if branch and labels[branch[1]] < i:
            spans.append((labels[branch[1]], i))
    alone = [(a, b) for a, b in spans if not any((a, b) != (c, d) and a <= c and d <= b for c, d in spans)]
    return [lines[a:b] for a, b in alone]


def describe(ptx):
    """What the tests ask of a kernel."""
    slow = re.compile(r"div\.\w+\.f64|sqrt\.\w+\.f64|rcp\.\w+\.f64|div\.[su]64|rem\.[su]64")
    read, write = re.compile(r"ld\.global(?:\.nc)?\.(v[24]\.\w+)"), re.compile(r"st\.global\.(v[24]\.\w+)")
    streaming = [loop for loop in innermost(ptx) if any(read.search(line) for line in loop)]
    return {
        "target": re.search(r"\.target (\w+)", ptx)[1],
        "read": sorted({width(found) for found in read.findall(ptx)}),
        "written": sorted({width(found) for found in write.findall(ptx)}),
        "at once": max((sum(bool(read.search(line)) for line in loop) for loop in streaming), default=0),
        "local": len(re.findall(r"\.local\b", ptx)),
        "calls": len(re.findall(r"\bcall\b", ptx)),
        "slow in loops": sorted({found for loop in streaming for line in loop for found in slow.findall(line)}),
        "bounds": ".maxntid" in ptx and ".minnctapersm" in ptx,
        "atomics": len(re.findall(r"atom(?:\.\w+)*\.add", ptx)),
        "fences": len(re.findall(r"membar\.gl|fence\.", ptx)),
        "fresh": len(re.findall(r"ld\.global\.cg\.f64", ptx)),
    }


def width(vector):
    """Bytes of a vector such as v4.f32."""
    count, kind = vector.split(".")
    return int(count[1:]) * int(kind[1:]) // 8


def main(capability):
    """Compile everything for one compute capability, such as '9.0'."""
    from numba import cuda
    from numba.cuda import dispatcher

    from keepnorm.kernels.cuda import build as kernels
    from keepnorm.kernels.cuda import device

    target = tuple(int(part) for part in capability.split("."))
    # Device functions are compiled for the current device; there is none here.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=target)
    answer = {}
    for family in ("runs", "lanes"):
        for name, (reduction, step, types, wide) in KERNELS.items():
            function = kernels.function(family == "lanes", reduction, step, kernels.Types(**types, wide=wide))
            ptx, _ = cuda.compile(
                function, device.signature(), device=False, cc=target, abi="numba", launch_bounds=device.LAUNCH_BOUNDS
            )
            answer[f"{family}: {name}"] = describe(ptx)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
