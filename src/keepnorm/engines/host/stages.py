"""Which stages of its kernels a call takes, and how many threads for each: numbers, from the plan and the threads alone.

The bits do not depend on them: each block is summed by one thread, whichever way, and blocks are merged in one order.
"""

from typing import NamedTuple

import numpy as np

from keepnorm.engines.host.memory import Walk
from keepnorm.kernels.columns import APPLY, CENTERS, FORWARD, MEASURED_ROWS, MERGE, MOMENTS, STATES
from keepnorm.tuning import SERIAL

# For kernels of which no stage leaves states of blocks for another.
NO_PART = np.empty((1, MEASURED_ROWS, 1))

# What stages without a result write.
NO_OUTPUT = np.empty(1, np.float32)


class Stage(NamedTuple):
    """One start of a kernel."""

    number: int
    tasks: int
    threads: int


def forward(steps: Walk, threads: int) -> tuple[Stage, ...]:
    """Moments and affine step: group by group, each of which meets the cache for its affine step, or one after the other."""
    if steps.fused and steps.groups >= threads:
        return (_stage(FORWARD, steps.groups, threads),)
    return (*reduction(steps, threads), affine(steps, threads))


def reduction(steps: Walk, threads: int) -> tuple[Stage, ...]:
    """Moments: cell by cell where there are enough cells for all threads, else block by block."""
    groups, blocks = steps.groups, steps.plan.blocks
    if threads == 1 or blocks == 1 or groups >= 4 * threads:
        return (_stage(MOMENTS, groups, threads),)
    merging = threads if steps.cells * blocks > SERIAL // 16 else 1
    return _stage(STATES, groups * blocks, threads), _stage(MERGE, groups, merging)


def affine(steps: Walk, threads: int) -> Stage:
    """The affine step, from states that are there."""
    plan = steps.plan
    return _stage(APPLY, steps.groups * (plan.blocks if plan.lanes else plan.positions * plan.pieces), threads)


def centers(steps: Walk) -> Stage:
    """Mean and scale of given states."""
    return _stage(CENTERS, steps.groups, 1)


def part_shape(steps: Walk, stages: tuple[Stage, ...]) -> tuple[int, ...] | None:
    """The shape of the states of blocks between two stages, if there are any."""
    return (stages[0].tasks, MEASURED_ROWS, steps.plan.chunk) if stages[0].number == STATES else None


def _stage(number: int, tasks: int, threads: int) -> Stage:
    return Stage(number, tasks, min(tasks, threads))
