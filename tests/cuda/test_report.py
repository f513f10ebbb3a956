"""The benchmark of a GPU says what it lacks, and writes what it found as a table."""

import os
import subprocess
import sys
from pathlib import Path

from asv_bench import gpu_report

SCRIPT = Path(gpu_report.__file__)


def test_without_a_gpu_it_says_so():
    environment = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert "there is no" in done.stderr


def test_a_table_gives_fractions_of_the_copy():
    job = gpu_report.JOBS[0]
    text = "\n".join(gpu_report.table(job, {1e9: {"copy": 0.5e-3, "keepnorm": 1e-3, "cuDNN": "differs by 1e-01"}}))
    assert "| 1 GB | 0.5 | 50% (1 ms) | differs by 1e-01 |" in text


def test_amounts():
    assert [gpu_report.amount(size) for size in (1e4, 1e6, 8e9)] == ["10 kB", "1 MB", "8 GB"]


def test_shapes_have_about_the_size_that_was_asked_for():
    for n in (2500, 25_000, 2_500_000, 250_000_000):
        for job in gpu_report.JOBS:
            shape = job.shape(n)
            size = 1
            for length in shape:
                size *= length
            assert min(n, 12544) / 2 <= size <= max(2 * n, 12544)
