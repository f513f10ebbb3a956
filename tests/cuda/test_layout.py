"""A plan cut for a device still meets every value once, in its own cell, whatever the sizes of blocks are."""

from collections import Counter
from math import prod

import numpy as np
import pytest

from keepnorm.kernels.cuda.partition import COLUMNS, INTEGERS, Shape, cut, pack
from keepnorm.plan import make_plan
from tests.cuda.device import subsets
from tests.layouts import layouts

SHAPES = [(1,), (7,), (4, 6), (1, 33), (3, 4, 5), (2, 3, 4, 5), (2, 40, 3), (70, 3), (5, 2, 6, 1, 3)]
DEVICES = [Shape(8, 4, 32, 16, 2), Shape(16, 4, 8, 4, 4), Shape()]


def plan_of(x, keep):
    return make_plan(x.shape, keep, keep, (tuple(s // x.itemsize for s in x.strides),), x.itemsize)


def visits(plan):
    return Counter(element[1:4] for element in plan.elements())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("device", DEVICES, ids=["8 threads", "16 threads", "a card"])
def test_a_cut_plan_meets_every_value_once_in_its_cell(shape, device):
    x = np.zeros(shape, np.float32)
    for keep in subsets(x.ndim):
        for _, stored in layouts(x):
            plan = plan_of(stored, keep)
            for wide in (1, 4):
                assert visits(cut(plan, wide, device).plan) == visits(plan)


@pytest.mark.parametrize("device", DEVICES, ids=["8 threads", "16 threads", "a card"])
def test_the_blocks_of_a_cell_do_not_depend_on_how_many_cells_there_are(device):
    for shape in [(50, 30), (50, 3, 7), (2, 3, 400), (5, 9000)]:
        blocks = set()
        for batch in (1, 2, 5):
            x = np.zeros((batch, *shape), np.float32)
            done = cut(plan_of(x, (0,)), 4, device)
            blocks.add((done.plan.rows, done.plan.pieces, done.plan.together, done.plan.blocks))
        assert len(blocks) == 1, shape


@pytest.mark.parametrize("device", DEVICES, ids=["8 threads", "16 threads", "a card"])
def test_tiles_fit_their_block(device):
    for shape in SHAPES:
        x = np.zeros(shape, np.float32)
        for keep in subsets(x.ndim):
            for _, stored in layouts(x):
                done = cut(plan_of(stored, keep), 4, device)
                plan = done.plan
                assert 1 <= done.across <= done.team <= device.threads
                assert done.wide in (1, 4)
                if plan.lanes:
                    tile = plan.fold * plan.chunk * plan.lane_reduced.size
                    assert tile <= done.across * done.wide <= device.threads * done.wide
                    assert done.tile <= device.threads
                    assert plan.chunks == 1 or plan.chunk * plan.lane_reduced.size % done.wide == 0
                else:
                    assert device.threads % done.team == 0
                    assert plan.blocks == 1 or done.team == device.threads


def test_a_large_cell_has_a_bounded_number_of_blocks():
    device = Shape()
    for strides, keep in [((2**33,), ()), ((2**33,), None)]:
        size = strides[0]
        shape, steps = ((size,), (1,)) if keep == () else ((2**27, 64), (64, 1))
        plan = make_plan(shape, keep or (() if keep == () else (1,)), (), (steps,), 4)
        assert cut(plan, 4, device).plan.blocks <= 2 * device.most


def test_the_tree_has_room_for_every_level():
    device = Shape(8, 4, 32, 64, 2)
    for n in (1, 33, 100, 1000, 5000):
        done = cut(plan_of(np.zeros(n, np.float32), ()), 1, device)
        levels, level = [], done.plan.blocks
        while level > 1:
            levels.append(level)
            level = -(-level // device.fan)
        assert done.slots == sum(levels)
        assert done.counters == sum(-(-n // device.fan) for n in levels)


def test_what_is_packed_has_a_place_for_every_integer():
    x = np.zeros((3, 4, 5, 6), np.float32)[:, ::2, :, ::2]
    done = cut(plan_of(x, (0, 2)), 4, Shape())
    numbers = pack(done)
    assert len(numbers) == INTEGERS + COLUMNS * (len(done.plan.kept) + len(done.plan.outer))
    assert all(isinstance(number, int) for number in numbers)
    assert prod(x.shape) == done.plan.cells * done.plan.count
