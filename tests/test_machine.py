"""What a machine is decides the speed, and never a bit of an answer."""

import os

import numpy as np
import pytest

import keepnorm as kn
from keepnorm import machine, plan, validate
from keepnorm.engines.host import engine as host
from keepnorm.engines.host import memory
from keepnorm.machine import SERIAL, is_serial


@pytest.mark.parametrize(("files", "expected"), [
    ({"index0": ("1", "48K"), "index2": ("2", "2048K"), "index3": ("3", "491520K")}, 2 << 20),
    ({"index0": ("1", "32K"), "index1": ("2", "16M")}, 16 << 20),
    ({"index0": ("1", "65536")}, 0),
    ({"index0": ("2", "a lot")}, 0),
    ({}, 0),
], ids=["server", "megabytes", "one level", "unreadable", "nothing"])  # fmt: skip
def test_the_size_of_a_cache_is_read_where_the_system_says_it(files, expected, tmp_path):
    for name, (level, size) in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "level").write_text(level + "\n")
        (tmp_path / name / "size").write_text(size + "\n")
    assert machine.own_bytes(tmp_path) == expected


def test_a_cache_without_a_size_is_none(tmp_path):
    (tmp_path / "index0").mkdir()
    (tmp_path / "index0" / "level").write_text("2")
    assert machine.own_bytes(tmp_path) == 0


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the system does not say how much memory it has")
def test_a_control_group_has_less_memory_than_the_machine(tmp_path):
    whole = machine.memory_bytes([])
    limit = tmp_path / "memory.max"
    for text, expected in (("536870912\n", 1 << 29), ("max\n", whole), ("9223372036854771712\n", whole)):
        limit.write_text(text)
        assert machine.memory_bytes([limit, tmp_path / "not there"]) == expected


@pytest.mark.parametrize(("shape", "keep"), [((64, 40, 14, 14), 1), ((16, 24, 30, 30), 1), ((50, 300), 0)], ids=str)
def test_no_bit_depends_on_how_many_cells_go_together(shape, keep, monkeypatch):
    x, dy = (np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + 3 for seed in (0, 1))
    weight, bias = np.random.default_rng(2).standard_normal((2, shape[keep])).astype(np.float32)

    def answers(size):
        monkeypatch.setattr(plan, "NEIGHBOUR_BYTES", size)
        monkeypatch.setattr(host, "_READY", {})
        monkeypatch.setattr(validate, "_CALLS", {})
        for function in (plan.make_plan, memory.walk_strides):
            function.cache_clear()
        y, vjp = kn.normalize_vjp(x, keep, weight, bias)
        seen = kn.moments(x, keep)
        return [a.tobytes() for a in (y, *vjp(dy), seen.shift, seen.delta, seen.m2)]

    assert answers(1 << 12) == answers(1 << 18) == answers(1 << 30)


def test_a_cell_takes_as_long_as_some_values():
    """Fewer values than a second thread pays for may be many cells."""
    assert is_serial(SERIAL // 2, 16)
    assert not is_serial(SERIAL // 2, SERIAL // 16)
    assert not is_serial(SERIAL, 1)
