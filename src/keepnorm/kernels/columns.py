"""What kernels and engines count by number: columns of tables, integers of a plan, rows of states, stages of a kernel.

Each list is here once: the engines write what the kernels read. All of them are constants to Numba.
"""

import numpy as np

# Columns of a table of axes, as in plan.Axis.
SIZE, CELL, AFFINE, X, Y, Z, MASK = np.arange(7)

# What a plan says in single integers; engines/host/memory.py fills them in.
(
    BASE_X,
    BASE_Y,
    BASE_Z,
    BASE_MASK,
    CELLS_OUTSIDE,
    POSITIONS,
    INNER,
    INNER_AFFINE,
    INNER_X,
    INNER_Y,
    INNER_Z,
    INNER_MASK,
    ROWS,
    PIECES,
    TOGETHER,
    BLOCKS,
    FOLD,
    LANE_KEPT,
    LANE_REDUCED,
    KEPT_AFFINE,
    REDUCED_AFFINE,
    LANE_X,
    LANE_Y,
    LANE_Z,
    LANE_MASK,
    CHUNK,
    CHUNKS,
    NEIGHBOURS,
    BEHIND,
    OWN,
) = np.arange(30)
INTEGERS = 30

# Rows of the state of a cell: count, shift K, delta, M2. The states of all cells have three more for the affine step: the
# mean in two floats, and 1 / sqrt(var + eps).
N, K, DELTA, M2, MEAN, LOW, SCALE = np.arange(7)
STATE_ROWS, MEASURED_ROWS = 7, 4

# Stages of the forward kernels: the states of blocks, their merge, the affine step by blocks; moments of whole cells, the same
# and the affine step; mean and scale of given states. From MOMENTS on, a task has whole cells.
STATES, MERGE, APPLY, MOMENTS, FORWARD, CENTERS = range(6)

# Stages of the backward kernels: the sums of blocks, their addition, dx by blocks; all of it for whole cells; the same where
# weights lie inside cells, for each row of their gradients. From CELLS on, a task has whole cells.
SUMS, ADD, GRADIENT, CELLS, INSIDE = range(5)
