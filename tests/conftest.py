"""Shared fixtures: a seeded generator, and Python in a process of its own."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import settings

# The first call of a kernel compiles it, which no deadline per example can know.
settings.register_profile("keepnorm", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("keepnorm")


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


@pytest.fixture(scope="session")
def run_python():
    """Run code in a fresh interpreter; give back its output, or fail with what it said."""

    def run(code, *arguments, env=None, timeout=240):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=dict(os.environ) | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    return run
