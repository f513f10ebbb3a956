"""The backward step of plans whose innermost axes are kept, or short; x, dx and dy are contiguous along a row of lanes.

The formulas are those of runs_backward.py, and so are the stages.
"""

import numpy as np

from keepnorm.kernels.columns import (
    ADD,
    AFFINE,
    BASE_X,
    BASE_Y,
    BASE_Z,
    BEHIND,
    BLOCKS,
    CELL,
    CELLS,
    CELLS_OUTSIDE,
    CHUNK,
    CHUNKS,
    FOLD,
    GRADIENT,
    INNER_AFFINE,
    INNER_X,
    INNER_Y,
    INNER_Z,
    INSIDE,
    KEPT_AFFINE,
    LANE_KEPT,
    LANE_REDUCED,
    REDUCED_AFFINE,
    SUMS,
    N,
    X,
    Y,
    Z,
)
from keepnorm.kernels.cpu.columns import gather, spread_round
from keepnorm.kernels.cpu.integers import least
from keepnorm.kernels.cpu.prefetch import (
    before_lines,
    distance,
    fence,
    is_large,
    prefetch,
    prefetch_ahead,
    prefetch_in_order,
    prefetch_write,
    streams,
    tile_of,
    whole_steps,
    write_ahead,
)
from keepnorm.kernels.cpu.scalars import block_bounds, centred, chunk_and_block, clear, difference, offset
from keepnorm.kernels.cpu.scale import set_centers
from keepnorm.kernels.cpu.scratch import allocate, have, lines, release
from keepnorm.kernels.cpu.simd import (
    WIDTH,
    centred_values,
    first,
    floats,
    fma,
    load,
    load_n,
    save,
    store_n,
    write_two,
)
from keepnorm.kernels.jit.compile import exact, helper

# Rows of the scratch of one task, each as long as a row of lanes.
MEAN, LOW, RSTD, SUM, PRODUCT, SCALE, SLOPE, LEVEL = range(8)


@exact
def add_row(x, xi, dy, zi, n, mean, low, s, q, c):
    """Add dy and dy * d of n values of one row to the sums of their lanes, the first of which is c."""
    for i in range(0, n, WIDTH):
        m = load(mean, c, i)
        e = load(low, c, i)
        if i + WIDTH <= n:
            g = floats(load(dy, zi, i))
            d = centred_values(load(x, xi, i), m, e)
        else:
            g = floats(load_n(dy, zi, i, n - i))
            d = first(centred_values(load_n(x, xi, i, n - i), m, e), n - i)
        save(s, c, i, load(s, c, i) + g)
        save(q, c, i, fma(g, d, load(q, c, i)))


@exact
def add_rows(x, xi, x_step, dy, zi, z_step, n, mean, low, s, q, c):
    """Add four rows at once: the sums of a lane are loaded and stored once for all four; lanes left over alike."""
    whole = n // WIDTH * WIDTH
    x2 = xi + x_step
    x3 = x2 + x_step
    x4 = x3 + x_step
    z2 = zi + z_step
    z3 = z2 + z_step
    z4 = z3 + z_step
    for i in range(0, whole, WIDTH):
        m = load(mean, c, i)
        e = load(low, c, i)
        g1 = floats(load(dy, zi, i))
        g2 = floats(load(dy, z2, i))
        g3 = floats(load(dy, z3, i))
        g4 = floats(load(dy, z4, i))
        d1 = centred_values(load(x, xi, i), m, e)
        d2 = centred_values(load(x, x2, i), m, e)
        d3 = centred_values(load(x, x3, i), m, e)
        d4 = centred_values(load(x, x4, i), m, e)
        save(s, c, i, load(s, c, i) + ((g1 + g2) + (g3 + g4)))
        save(q, c, i, fma(g1, d1, fma(g2, d2, load(q, c, i))) + fma(g3, d3, g4 * d4))
    if whole < n:
        k = n - whole
        m = load(mean, c, whole)
        e = load(low, c, whole)
        g1 = floats(load_n(dy, zi, whole, k))
        g2 = floats(load_n(dy, z2, whole, k))
        g3 = floats(load_n(dy, z3, whole, k))
        g4 = floats(load_n(dy, z4, whole, k))
        d1 = first(centred_values(load_n(x, xi, whole, k), m, e), k)
        d2 = first(centred_values(load_n(x, x2, whole, k), m, e), k)
        d3 = first(centred_values(load_n(x, x3, whole, k), m, e), k)
        d4 = first(centred_values(load_n(x, x4, whole, k), m, e), k)
        save(s, c, whole, load(s, c, whole) + ((g1 + g2) + (g3 + g4)))
        save(q, c, whole, fma(g1, d1, fma(g2, d2, load(q, c, whole))) + fma(g3, d3, g4 * d4))


@exact
def gradient(values, given, lanes, lane, j):
    """dx = dy * scale + d * slope + level of eight values."""
    d = centred_values(values, load(lanes[MEAN], lane, j), load(lanes[LOW], lane, j))
    return fma(floats(given), load(lanes[SCALE], lane, j), fma(d, load(lanes[SLOPE], lane, j), load(lanes[LEVEL], lane, j)))


@exact
def gradient_rows(x, xi, dx, yi, dy, zi, n, full, lanes, nontemporal):
    """dx of n values, rows of `full` lanes that follow each other."""
    ahead = distance(x, n)
    free = write_ahead(dx, nontemporal)
    i = 0
    lane = 0
    end = before_lines(dx, yi, n, nontemporal)
    while i < n:
        while i < end:
            k = least(WIDTH, end - i)
            lane -= full if lane >= full else 0
            store_n(dx, yi, i, k, gradient(load_n(x, xi, i, k), load_n(dy, zi, i, k), lanes, lane, 0))
            i += k
            lane += k
        stop = i + whole_steps(dx, n - i, 2 * WIDTH, nontemporal)
        while i < stop:
            lane -= full if lane >= full else 0
            whole = least((full - lane + 2 * WIDTH - 1) // (2 * WIDTH), (stop - i) // (2 * WIDTH)) * 2 * WIDTH
            for j in range(0, whole, 2 * WIDTH):
                if ahead != 0:
                    prefetch(x, xi + i + ahead + j)
                    prefetch(dy, zi + i + ahead + j)
                if free != 0:
                    prefetch_write(dx, yi + i + free + j)
                one = gradient(load(x, xi + i, j), load(dy, zi + i, j), lanes, lane, j)
                other = gradient(load(x, xi + i, j + WIDTH), load(dy, zi + i, j + WIDTH), lanes, lane, j + WIDTH)
                write_two(dx, yi + i, j, one, other, nontemporal)
            i += whole
            lane += whole
        end = n


@helper
def block_sums(x, dy, plan, outer, x_start, z_start, b, width, lanes):
    """Add the rows of block b to the sums of their lanes; `width` lanes are one step of the inner axis."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    fold = plan[FOLD]
    full = fold * width
    mean = lanes[MEAN]
    low = lanes[LOW]
    s = lanes[SUM]
    q = lanes[PRODUCT]
    x_step = fold * plan[INNER_X]
    z_step = fold * plan[INNER_Z]
    tile = tile_of(x, full, x_step) if x_step == z_step else full
    for p in range(p0, p1):
        x0 = x_start + offset(outer, p, X)
        z0 = z_start + offset(outer, p, Z)
        i = i0
        while i + 4 * fold <= i1:
            for c in range(0, full, tile):
                n = least(tile, full - c)
                xi = x0 + i * plan[INNER_X] + c
                zi = z0 + i * plan[INNER_Z] + c
                if tile < full:
                    prefetch_in_order(x, xi + 3 * c, 4 * n, 4 * full)
                    prefetch_in_order(dy, zi + 3 * c, 4 * n, 4 * full)
                add_rows(x, xi, x_step, dy, zi, z_step, n, mean, low, s, q, c)
            i += 4 * fold
        while i < i1:
            n = least(fold, i1 - i) * width
            add_row(x, x0 + i * plan[INNER_X], dy, z0 + i * plan[INNER_Z], n, mean, low, s, q, np.int64(0))
            i += fold


@helper
def block_sums_inside(x, dy, plan, outer, x_start, z_start, a, b, cells, lanes, weight, dweight, dbias):
    """The same with weights inside the cells: sums of g and g * d, and the gradients of weight and bias."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    short = plan[LANE_REDUCED]
    for p in range(p0, p1):
        first = a + offset(outer, p, AFFINE)
        for i in range(i0, i1):
            xi = x_start + offset(outer, p, X) + i * plan[INNER_X]
            zi = z_start + offset(outer, p, Z) + i * plan[INNER_Z]
            for k in range(cells):
                j = first + i * plan[INNER_AFFINE] + k * plan[KEPT_AFFINE]
                s = 0.0
                q = 0.0
                for r in range(short):
                    lane = k * short + r
                    g = difference(dy[zi + lane], 0.0)
                    d = centred(x[xi + lane], lanes[MEAN, lane], lanes[LOW, lane])
                    w = weight[j + r * plan[REDUCED_AFFINE]]
                    dweight[j + r * plan[REDUCED_AFFINE]] += g * d * lanes[RSTD, k]
                    dbias[j + r * plan[REDUCED_AFFINE]] += g
                    s += g * w
                    q += g * w * d
                lanes[SUM, k * short] += s
                lanes[PRODUCT, k * short] += q


@helper
def sum_lanes(plan, cells, lanes, sums):
    """Add the lanes of every cell up."""
    for row in (SUM, PRODUCT):
        gather(lanes[row], cells, plan[LANE_REDUCED], plan[FOLD])
    for k in range(cells):
        sums[0, k] = lanes[SUM, k]
        sums[1, k] = lanes[PRODUCT, k]


@helper
def set_lanes(plan, state, cell, cells, eps, center, lanes):
    """Work out the scale of neighbouring cells, spread their means over their lanes, and clear the sums."""
    short = plan[LANE_REDUCED]
    fold = plan[FOLD]
    set_centers(state, cell, cells, eps, center, False, lanes[MEAN], lanes[LOW], lanes[RSTD], 0)
    for row in (MEAN, LOW):
        spread_round(lanes[row], cells, short, fold, 2 * WIDTH)
    for row in (SUM, PRODUCT):
        lanes[row, : fold * cells * short] = 0.0


@helper
def set_gradient(plan, state, totals, cell, a, cells, weight, inside, through, center, lanes):
    """Spread the coefficients of dx over the lanes, with the weights from affine index `a` on."""
    short = plan[LANE_REDUCED]
    own = short if plan[REDUCED_AFFINE] != 0 else 1  # how many lanes of a cell have a weight of their own
    for k in range(cells):
        n = state[N, cell + k]
        scale = lanes[RSTD, k]
        slope = -totals[1, cell + k] * scale * scale * scale / n if through and scale != 0.0 else 0.0
        level = -totals[0, cell + k] * scale / n if through and center else 0.0
        for r in range(own):
            lane = k * own + r
            w = weight[a + k * plan[KEPT_AFFINE] + r * plan[REDUCED_AFFINE]]
            outside = 1.0 if inside else w  # inside cells the sums hold the weights already
            lanes[SCALE, lane] = scale * w
            lanes[SLOPE, lane] = slope * outside
            lanes[LEVEL, lane] = level * outside
    for row in (SCALE, SLOPE, LEVEL):
        spread_round(lanes[row], cells * own, short // own, plan[FOLD], 2 * WIDTH)


@helper
def block_gradient(
    x, dx, dy, plan, outer, starts, a, b, cell, cells, state, totals, weight, inside, through, center, lanes, behind
):
    """dx of block b of neighbouring cells."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    fold = plan[FOLD]
    width = cells * plan[LANE_REDUCED]
    x_step = plan[INNER_X]
    y_step = plan[INNER_Y]
    z_step = plan[INNER_Z]
    full = fold * width
    last = -1
    side_by_side = x_step == width and y_step == width and z_step == width
    together = side_by_side and plan[INNER_AFFINE] == 0 and full >= 2 * WIDTH
    nontemporal = is_large(dx) if together else streams(dx, full)
    for p in range(p0, p1):
        x0 = starts[0] + offset(outer, p, X)
        y0 = starts[1] + offset(outer, p, Y)
        z0 = starts[2] + offset(outer, p, Z)
        position = a + offset(outer, p, AFFINE)
        i = i0
        while i < i1:
            j = position + i * plan[INNER_AFFINE]
            if j != last:
                set_gradient(plan, state, totals, cell, j, cells, weight, inside, through, center, lanes)
                last = j
            steps = i1 - i if together else least(fold, i1 - i)
            n = steps * width
            xi = x0 + i * x_step
            yi = y0 + i * y_step
            zi = z0 + i * z_step
            if behind:
                prefetch_ahead(x, xi + n, 0, 1, n)
                prefetch_ahead(dy, zi + n, 0, 1, n)
            gradient_rows(x, xi, dx, yi, dy, zi, n, full, lanes, nontemporal)
            i += steps


@exact
def tasks(
    stage, t0, t1, x, dx, dy, plan, kept, outer, part, state, totals, weight, dweight, dbias, eps, center, inside, through
):
    """Run the tasks [t0, t1) of a stage: as in runs_backward.py, where a chunk of neighbouring cells stands for a cell."""
    blocks = plan[BLOCKS]
    chunks = plan[CHUNKS]
    short = plan[LANE_REDUCED]
    full = plan[FOLD] * plan[CHUNK] * short
    lanes = allocate((8, lines(full + WIDTH)), np.float64)
    own = allocate((2, plan[CHUNK]), np.float64)
    ready = have((lanes, own))
    behind = stage == CELLS and plan[BEHIND] != 0
    groups = plan[CELLS_OUTSIDE] * chunks
    of_blocks = stage == SUMS or stage == GRADIENT
    for t in range(t0, t1 if ready else t0):
        first, b0 = chunk_and_block(t, plan) if of_blocks else (t, 0)
        b1 = b0 + 1 if of_blocks else blocks
        last = first + 1
        row = 0
        if stage == INSIDE:
            first = t * groups // dweight.shape[0]
            last = (t + 1) * groups // dweight.shape[0]
            row = t
            clear(dweight, row)
            clear(dbias, row)
        for group in range(first, last):
            position = group // chunks
            k0 = (group - position * chunks) * plan[CHUNK]
            cells = least(plan[CHUNK], plan[LANE_KEPT] - k0)
            cell = offset(kept, position, CELL) + k0
            x_start = plan[BASE_X] + offset(kept, position, X) + k0 * short
            y_start = plan[BASE_Y] + offset(kept, position, Y) + k0 * short
            z_start = plan[BASE_Z] + offset(kept, position, Z) + k0 * short
            a = offset(kept, position, AFFINE) + k0 * plan[KEPT_AFFINE]
            set_lanes(plan, state, cell, cells, eps, center, lanes)
            if stage == ADD:
                for k in range(cells):
                    own[0, k] = 0.0
                    own[1, k] = 0.0
                for b in range(blocks):
                    for k in range(cells):
                        own[0, k] += part[t * blocks + b, 0, k]
                        own[1, k] += part[t * blocks + b, 1, k]
            elif stage != GRADIENT:
                for b in range(b0, b1):
                    if inside:
                        block_sums_inside(
                            x, dy, plan, outer, x_start, z_start, a, b, cells, lanes, weight, dweight[row], dbias[row]
                        )
                    else:
                        block_sums(x, dy, plan, outer, x_start, z_start, b, cells * short, lanes)
                sum_lanes(plan, cells, lanes, part[group * blocks + b0] if stage == SUMS else own)
            if stage == ADD or stage >= CELLS:
                for k in range(cells):
                    totals[0, cell + k] = own[0, k]
                    totals[1, cell + k] = own[1, k]
                    totals[2, cell + k] = own[1, k] * lanes[RSTD, k]
            if stage >= GRADIENT:
                starts = (x_start, y_start, z_start)
                for b in range(b0, b1):
                    block_gradient(
                        x,
                        dx,
                        dy,
                        plan,
                        outer,
                        starts,
                        a,
                        b,
                        cell,
                        cells,
                        state,
                        totals,
                        weight,
                        inside,
                        through,
                        center,
                        lanes,
                        behind,
                    )
    fence()
    release((lanes, own))
    return 0 if ready else 1
