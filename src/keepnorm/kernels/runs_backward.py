"""The backward step of plans whose innermost axis is reduced; x, dx and dy are contiguous along it.

With ``d = x - mean``, ``r = 1 / sqrt(var + eps)``, ``g = dy * weight`` and sums over one cell,
``dx = r * (g - sum(g) / n - d * r^2 * sum(g d) / n)``, ``dweight = sum(dy d) r``, ``dbias = sum(dy)``.
"""

from keepnorm.kernels.compile import exact, helper
from keepnorm.kernels.integers import least
from keepnorm.kernels.scalars import (
    AFFINE,
    BASE_X,
    BASE_Y,
    BASE_Z,
    BLOCKS,
    CELL,
    CELLS_OUTSIDE,
    INNER,
    INNER_AFFINE,
    POSITIONS,
    N,
    X,
    Y,
    Z,
    block_bounds,
    center_and_scale,
    centred,
    difference,
    offset,
    store,
)
from keepnorm.kernels.scratch import allocate, have, release
from keepnorm.kernels.traffic import LINE, ask_ahead, finish, is_group, place, put, streams


@helper
def sums(x, dy, mean, low):
    """Sum dy and dy * d over a run."""
    s = 0.0
    q = 0.0
    for i in range(x.size):
        g = difference(dy[i], 0.0)
        s += g
        q += g * centred(x[i], mean, low)
    return s, q


@helper
def sums_of_four(x, xa, xb, xc, xd, dy, ya, yb, yc, yd, n, mean, low):
    """The same over four runs at once, each from its own first value on, as in runs.py."""
    s = 0.0
    q = 0.0
    x0 = x[xa : xa + n]
    x1 = x[xb : xb + n]
    x2 = x[xc : xc + n]
    x3 = x[xd : xd + n]
    y0 = dy[ya : ya + n]
    y1 = dy[yb : yb + n]
    y2 = dy[yc : yc + n]
    y3 = dy[yd : yd + n]
    for i in range(n):
        g0 = difference(y0[i], 0.0)
        g1 = difference(y1[i], 0.0)
        g2 = difference(y2[i], 0.0)
        g3 = difference(y3[i], 0.0)
        s += (g0 + g1) + (g2 + g3)
        q += (g0 * centred(x0[i], mean, low) + g1 * centred(x1[i], mean, low)) + (
            g2 * centred(x2[i], mean, low) + g3 * centred(x3[i], mean, low)
        )
    return s, q


@helper
def sums_affine(x, dy, mean, low, scale, weight, dweight, dbias):
    """Sum g and g * d over a run whose values have their own weights, and add to the gradients of weight and bias."""
    s = 0.0
    q = 0.0
    for i in range(x.size):
        g = difference(dy[i], 0.0)
        d = centred(x[i], mean, low)
        s += g * weight[i]
        q += g * weight[i] * d
        dweight[i] += g * d * scale
        dbias[i] += g
    return s, q


@helper
def gradient_run(x, dx, dy, mean, low, scale, slope, level):
    """dx = dy * scale + d * slope + level."""
    for i in range(x.size):
        store(dx, i, difference(dy[i], 0.0) * scale + (centred(x[i], mean, low) * slope + level))


@helper
def gradient_run_affine(x, dx, dy, mean, low, weight, scale, slope, level):
    """The same with a weight for each value."""
    for i in range(x.size):
        store(dx, i, difference(dy[i], 0.0) * weight[i] * scale + (centred(x[i], mean, low) * slope + level))


@helper
def block_sums(x, dy, plan, kept, outer, cell, b, mean, low, scale, weight, inside, dweight, dbias):
    """Sum g and g * d over block b of a cell (dy and dy * d, where the weight is the same for the whole cell)."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    n = i1 - i0
    s = 0.0
    q = 0.0
    x_start = plan[BASE_X] + offset(kept, cell, X) + i0
    z_start = plan[BASE_Z] + offset(kept, cell, Z) + i0
    fours = 0 if inside else (p1 - p0) // 4 * 4
    for p in range(p0, p0 + fours, 4):
        ds, dq = sums_of_four(
            x, x_start + offset(outer, p, X), x_start + offset(outer, p + 1, X), x_start + offset(outer, p + 2, X),
            x_start + offset(outer, p + 3, X), dy, z_start + offset(outer, p, Z), z_start + offset(outer, p + 1, Z),
            z_start + offset(outer, p + 2, Z), z_start + offset(outer, p + 3, Z), n, mean, low,
        )  # fmt: skip
        s += ds
        q += dq
    for p in range(p0 + fours, p1):
        x0 = x_start + offset(outer, p, X)
        z0 = z_start + offset(outer, p, Z)
        if inside and plan[INNER_AFFINE]:
            a = offset(kept, cell, AFFINE) + offset(outer, p, AFFINE) + i0
            ds, dq = sums_affine(
                x[x0 : x0 + n], dy[z0 : z0 + n], mean, low, scale, weight[a : a + n], dweight[a : a + n], dbias[a : a + n]
            )
        else:
            ds, dq = sums(x[x0 : x0 + n], dy[z0 : z0 + n], mean, low)
            if inside:
                a = offset(kept, cell, AFFINE) + offset(outer, p, AFFINE)
                dweight[a] += dq * scale
                dbias[a] += ds
                ds *= weight[a]
                dq *= weight[a]
        s += ds
        q += dq
    return s, q


@helper
def block_gradient(
    x, dx, dy, plan, kept, outer, cell, b, mean, low, scale, s, q, n, weight, inside, through, center, line, behind
):
    """dx of block b of a cell; `through` tells whether the moments depend on x."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    width = i1 - i0
    piece = width if line.size == 0 else LINE
    slope = -q * scale * scale * scale / n if through else 0.0
    level = -s * scale / n if through and center else 0.0
    for p in range(p0, p1):
        x0 = plan[BASE_X] + offset(kept, cell, X) + offset(outer, p, X) + i0
        y0 = plan[BASE_Y] + offset(kept, cell, Y) + offset(outer, p, Y) + i0
        z0 = plan[BASE_Z] + offset(kept, cell, Z) + offset(outer, p, Z) + i0
        a = offset(kept, cell, AFFINE) + offset(outer, p, AFFINE)
        if behind:
            ask_ahead(x, x0 + width, 0, 1, width)
            ask_ahead(dy, z0 + width, 0, 1, width)
        w = weight[a]
        own = 1.0 if inside else w  # inside cells the sums hold the weights already
        for i in range(0, width, piece):
            m = least(piece, width - i)
            here = x[x0 + i : x0 + i + m]
            given = dy[z0 + i : z0 + i + m]
            there = place(line, dx, y0 + i, m)
            if plan[INNER_AFFINE] and inside:
                own_weights = weight[a + i0 + i : a + i0 + i + m]
                gradient_run_affine(here, there, given, mean, low, own_weights, scale, slope, level)
            else:
                gradient_run(here, there, given, mean, low, scale * w, slope * own, level * own)
            put(line, dx, y0 + i, 1, m)


@exact
def tasks(
    stage, t0, t1, x, dx, dy, plan, kept, outer, part, state, totals, weight, dweight, dbias, eps, center, inside, through
):
    """Run the tasks [t0, t1) of a stage.

    Stage 0 sums blocks, stage 1 adds them up for each cell, stage 2 writes dx block by block. Stage 3 does all of it for
    each cell; stage 4 too, where weights lie inside cells, for each row of dweight and dbias, which no two tasks share.
    """
    line = allocate((LINE if streams(dx, plan[INNER]) else 0,), dx.dtype)
    ready = have(line)
    blocks = plan[BLOCKS]
    behind = stage == 3 and is_group(x, plan[POSITIONS] * plan[INNER])
    cells = plan[CELLS_OUTSIDE]
    for t in range(t0, t1 if ready else t0):
        # Blocks go in the order of the memory, so that a page of dx is filled while it is new.
        first = t % cells if stage == 0 or stage == 2 else t
        last = first + 1
        row = 0
        if stage == 4:
            first = t * cells // dweight.shape[0]
            last = (t + 1) * cells // dweight.shape[0]
            row = t
        for position in range(first, last):
            cell = offset(kept, position, CELL)
            mean, low, scale = center_and_scale(state, cell, eps, center, False)
            b0 = t // cells if stage == 0 or stage == 2 else 0
            b1 = b0 + 1 if stage == 0 or stage == 2 else blocks
            s = 0.0
            q = 0.0
            if stage == 1:
                for b in range(blocks):
                    s += part[t * blocks + b, 0, 0]
                    q += part[t * blocks + b, 1, 0]
            elif stage == 2:
                s = totals[0, cell]
                q = totals[1, cell]
            else:
                for b in range(b0, b1):
                    ds, dq = block_sums(
                        x, dy, plan, kept, outer, position, b, mean, low, scale, weight, inside, dweight[row], dbias[row]
                    )
                    s += ds
                    q += dq
            if stage == 0:
                part[position * blocks + b0, 0, 0] = s
                part[position * blocks + b0, 1, 0] = q
            elif stage != 2:
                totals[0, cell] = s
                totals[1, cell] = q
                totals[2, cell] = q * scale
            if stage >= 2:
                for b in range(b0, b1):
                    block_gradient(
                        x, dx, dy, plan, kept, outer, position, b, mean, low, scale, s, q, state[N, cell], weight, inside,
                        through, center, line, behind,
                    )  # fmt: skip
    finish()
    release(line)
    return 0 if ready else 1
