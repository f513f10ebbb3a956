"""The backward step of plans whose innermost axis is reduced; x, dx and dy are contiguous along it.

With ``d = x - mean``, ``r = 1 / sqrt(var + eps)``, ``g = dy * weight`` and sums over one cell,
``dx = r * (g - sum(g) / n - d * r^2 * sum(g d) / n)``, ``dweight = sum(dy d) r``, ``dbias = sum(dy)``. Neighbouring cells go
together, as in rows.py.
"""

from numpy import float64

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
    GRADIENT,
    INNER,
    INNER_AFFINE,
    INSIDE,
    NEIGHBOURS,
    PIECES,
    SIZE,
    SUMS,
    N,
    X,
    Y,
    Z,
)
from keepnorm.kernels.cpu.integers import least
from keepnorm.kernels.cpu.prefetch import (
    before_lines,
    distance,
    fence,
    prefetch,
    prefetch_ahead,
    prefetch_write,
    streams,
    whole_steps,
    write_ahead,
)
from keepnorm.kernels.cpu.scalars import block_bounds, clear, offset
from keepnorm.kernels.cpu.scale import set_centers
from keepnorm.kernels.cpu.scratch import allocate, have, release
from keepnorm.kernels.cpu.simd import (
    WIDTH,
    centred_values,
    fill,
    first,
    floats,
    fma,
    load,
    load_both,
    load_n,
    save,
    store_n,
    total,
    write,
    write_both,
)
from keepnorm.kernels.jit.compile import exact

# Rows of the scratch array of a group of cells.
COUNT, MEAN, LOW, RSTD, SUM, PRODUCT = range(6)


@exact
def run_sums(x, xi, dy, zi, n, mean, low):
    """Sum dy and dy * d over a run."""
    m = fill(mean)
    e = fill(low)
    s = s2 = q = q2 = fill(0.0)
    ahead = distance(x, n)
    i = 0
    while i + 2 * WIDTH <= n:
        if ahead != 0:
            prefetch(x, xi + ahead + i)
            prefetch(dy, zi + ahead + i)
        g, g2 = load_both(dy, zi, i)
        d, d2 = load_both(x, xi, i)
        s += floats(g)
        s2 += floats(g2)
        q = fma(floats(g), centred_values(d, m, e), q)
        q2 = fma(floats(g2), centred_values(d2, m, e), q2)
        i += 2 * WIDTH
    while i < n:
        k = least(WIDTH, n - i)
        given = floats(load_n(dy, zi, i, k))
        s += given
        q = fma(given, first(centred_values(load_n(x, xi, i, k), m, e), k), q)
        i += WIDTH
    return total(s + s2), total(q + q2)


@exact
def run_sums_affine(x, xi, dy, zi, n, mean, low, scale, weight, dweight, dbias, a):
    """Sum g and g * d over a run whose values have their own weights, and add to the gradients of weight and bias."""
    m = fill(mean)
    e = fill(low)
    r = fill(scale)
    s = q = fill(0.0)
    for i in range(0, n, WIDTH):
        k = n - i
        if k >= WIDTH:
            given = floats(load(dy, zi, i))
            d = centred_values(load(x, xi, i), m, e)
            save(dweight, a, i, fma(given * d, r, load(dweight, a, i)))
            save(dbias, a, i, load(dbias, a, i) + given)
            g = given * load(weight, a, i)
        else:
            given = floats(load_n(dy, zi, i, k))
            d = first(centred_values(load_n(x, xi, i, k), m, e), k)
            store_n(dweight, a, i, k, fma(given * d, r, load_n(dweight, a, i, k)))
            store_n(dbias, a, i, k, load_n(dbias, a, i, k) + given)
            g = given * load_n(weight, a, i, k)
        s += g
        q = fma(g, d, q)
    return total(s), total(q)


@exact
def eight_of_row(x, xi, dy, zi, i, k, m, e, r, w, dw, db):
    """The gradients of weight and bias with k values of a row added, eight at most, and their g and d."""
    given = floats(load_n(dy, zi, i, k))
    d = first(centred_values(load_n(x, xi, i, k), m, e), k)
    return fma(given * d, r, dw), db + given, given * w, d


@exact
def four_sums_affine(x, xi, x_step, dy, zi, z_step, n, own, k, weight, dweight, dbias, a):
    """`run_sums_affine` for the runs of four cells with the same weights: these, and their gradients, come and go once."""
    m0, m1, m2, m3 = fill(own[MEAN, k]), fill(own[MEAN, k + 1]), fill(own[MEAN, k + 2]), fill(own[MEAN, k + 3])
    e0, e1, e2, e3 = fill(own[LOW, k]), fill(own[LOW, k + 1]), fill(own[LOW, k + 2]), fill(own[LOW, k + 3])
    r0, r1, r2, r3 = fill(own[RSTD, k]), fill(own[RSTD, k + 1]), fill(own[RSTD, k + 2]), fill(own[RSTD, k + 3])
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = fill(0.0)
    for i in range(0, n, WIDTH):
        c = least(WIDTH, n - i)
        w = load_n(weight, a, i, c)
        dw = load_n(dweight, a, i, c)
        db = load_n(dbias, a, i, c)
        dw, db, g, d = eight_of_row(x, xi, dy, zi, i, c, m0, e0, r0, w, dw, db)
        s0 += g
        q0 = fma(g, d, q0)
        dw, db, g, d = eight_of_row(x, xi + x_step, dy, zi + z_step, i, c, m1, e1, r1, w, dw, db)
        s1 += g
        q1 = fma(g, d, q1)
        dw, db, g, d = eight_of_row(x, xi + 2 * x_step, dy, zi + 2 * z_step, i, c, m2, e2, r2, w, dw, db)
        s2 += g
        q2 = fma(g, d, q2)
        dw, db, g, d = eight_of_row(x, xi + 3 * x_step, dy, zi + 3 * z_step, i, c, m3, e3, r3, w, dw, db)
        s3 += g
        q3 = fma(g, d, q3)
        store_n(dweight, a, i, c, dw)
        store_n(dbias, a, i, c, db)
    own[SUM, k] += total(s0)
    own[SUM, k + 1] += total(s1)
    own[SUM, k + 2] += total(s2)
    own[SUM, k + 3] += total(s3)
    own[PRODUCT, k] += total(q0)
    own[PRODUCT, k + 1] += total(q1)
    own[PRODUCT, k + 2] += total(q2)
    own[PRODUCT, k + 3] += total(q3)


@exact
def gradient_run(x, xi, dx, yi, dy, zi, n, mean, low, scale, slope, level, nontemporal):
    """dx = dy * scale + d * slope + level."""
    m = fill(mean)
    e = fill(low)
    f = fill(scale)
    b = fill(slope)
    c = fill(level)
    ahead = distance(x, n)
    free = write_ahead(dx, nontemporal)
    i = 0
    end = before_lines(dx, yi, n, nontemporal)
    while i < n:
        while i < end:
            k = least(WIDTH, end - i)
            d = centred_values(load_n(x, xi, i, k), m, e)
            store_n(dx, yi, i, k, fma(floats(load_n(dy, zi, i, k)), f, fma(d, b, c)))
            i += k
        whole = whole_steps(dx, n - i, 2 * WIDTH, nontemporal)
        for j in range(i, i + whole, 2 * WIDTH):
            if ahead != 0:
                prefetch(x, xi + ahead + j)
                prefetch(dy, zi + ahead + j)
            if free != 0:
                prefetch_write(dx, yi + free + j)
            g, g2 = load_both(dy, zi, j)
            given, given2 = load_both(x, xi, j)
            one = fma(floats(g), f, fma(centred_values(given, m, e), b, c))
            other = fma(floats(g2), f, fma(centred_values(given2, m, e), b, c))
            write_both(dx, yi, j, (one, other), nontemporal)
        i += whole
        end = n


@exact
def gradient_run_affine(x, xi, dx, yi, dy, zi, n, mean, low, weight, a, scale, slope, level, nontemporal):
    """The same with a weight for each value, from affine index `a` on."""
    m = fill(mean)
    e = fill(low)
    f = fill(scale)
    b = fill(slope)
    c = fill(level)
    free = write_ahead(dx, nontemporal)
    i = 0
    end = before_lines(dx, yi, n, nontemporal)
    while i < n:
        while i < end:
            k = least(WIDTH, end - i)
            d = centred_values(load_n(x, xi, i, k), m, e)
            g = floats(load_n(dy, zi, i, k)) * load_n(weight, a, i, k)
            store_n(dx, yi, i, k, fma(g, f, fma(d, b, c)))
            i += k
        whole = whole_steps(dx, n - i, WIDTH, nontemporal)
        for j in range(i, i + whole, WIDTH):
            if free != 0:
                prefetch_write(dx, yi + free + j)
            d = centred_values(load(x, xi, j), m, e)
            g = floats(load(dy, zi, j)) * load(weight, a, j)
            write(dx, yi, j, fma(g, f, fma(d, b, c)), nontemporal)
        i += whole
        end = n


@exact
def block_sums(x, dy, plan, kept, outer, cell, cells, b, own, weight, inside, dweight, dbias):
    """Add block b of neighbouring cells to their sums of g and g * d; of dy and dy * d, where weights hold for whole cells."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    n = i1 - i0
    last = kept.shape[0] - 1
    x_step = kept[last, X]
    z_step = kept[last, Z]
    affine_step = kept[last, AFFINE]
    x_start = plan[BASE_X] + offset(kept, cell, X) + i0
    z_start = plan[BASE_Z] + offset(kept, cell, Z) + i0
    affine_start = offset(kept, cell, AFFINE) + i0 * plan[INNER_AFFINE]
    for p in range(p0, p1):
        x0 = x_start + offset(outer, p, X)
        z0 = z_start + offset(outer, p, Z)
        a = affine_start + offset(outer, p, AFFINE)
        fours = cells // 4 * 4 if inside and plan[INNER_AFFINE] and affine_step == 0 else 0
        for k in range(0, fours, 4):
            four_sums_affine(x, x0, x_step, dy, z0, z_step, n, own, k, weight, dweight, dbias, a)
            x0 += 4 * x_step
            z0 += 4 * z_step
        for k in range(fours, cells):
            mean = own[MEAN, k]
            low = own[LOW, k]
            if inside and plan[INNER_AFFINE]:
                ds, dq = run_sums_affine(x, x0, dy, z0, n, mean, low, own[RSTD, k], weight, dweight, dbias, a)
            else:
                ds, dq = run_sums(x, x0, dy, z0, n, mean, low)
                if inside:
                    dweight[a] += dq * own[RSTD, k]
                    dbias[a] += ds
                    ds *= weight[a]
                    dq *= weight[a]
            own[SUM, k] += ds
            own[PRODUCT, k] += dq
            x0 += x_step
            z0 += z_step
            a += affine_step


@exact
def block_gradient(x, dx, dy, plan, kept, outer, cell, cells, b, own, weight, inside, through, center, behind):
    """dx of block b of neighbouring cells; `through` tells whether the moments depend on x."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    width = i1 - i0
    nontemporal = streams(dx, plan[INNER])
    last = kept.shape[0] - 1
    x_step = kept[last, X]
    y_step = kept[last, Y]
    z_step = kept[last, Z]
    affine_step = kept[last, AFFINE]
    x_start = plan[BASE_X] + offset(kept, cell, X) + i0
    y_start = plan[BASE_Y] + offset(kept, cell, Y) + i0
    z_start = plan[BASE_Z] + offset(kept, cell, Z) + i0
    affine_start = offset(kept, cell, AFFINE)
    for p in range(p0, p1):
        x0 = x_start + offset(outer, p, X)
        y0 = y_start + offset(outer, p, Y)
        z0 = z_start + offset(outer, p, Z)
        a = affine_start + offset(outer, p, AFFINE)
        for k in range(cells):
            mean = own[MEAN, k]
            low = own[LOW, k]
            scale = own[RSTD, k]
            n = own[COUNT, k]
            slope = -own[PRODUCT, k] * scale * scale * scale / n if through and scale != 0.0 else 0.0
            level = -own[SUM, k] * scale / n if through and center else 0.0
            if behind:
                prefetch_ahead(x, x0 + cells * width, 0, 1, width)
                prefetch_ahead(dy, z0 + cells * width, 0, 1, width)
            if plan[INNER_AFFINE] and inside:
                gradient_run_affine(x, x0, dx, y0, dy, z0, width, mean, low, weight, a + i0, scale, slope, level, nontemporal)
            else:
                w = weight[a]
                share = 1.0 if inside else w  # inside cells the sums hold the weights already
                gradient_run(x, x0, dx, y0, dy, z0, width, mean, low, scale * w, slope * share, level * share, nontemporal)
            x0 += x_step
            y0 += y_step
            z0 += z_step
            a += affine_step


@exact
def tasks(
    stage, t0, t1, x, dx, dy, plan, kept, outer, part, state, totals, weight, dweight, dbias, eps, center, inside, through
):
    """Run the tasks [t0, t1) of a stage.

    SUMS sums blocks, ADD adds them up for each cell, GRADIENT writes dx block by block; SUMS and GRADIENT are in the order of
    the memory. CELLS does all of it for each cell; so does INSIDE, where weights lie inside cells, for each row of dweight and
    dbias, which no two tasks share.
    """
    blocks = plan[BLOCKS]
    outside = plan[CELLS_OUTSIDE]
    of_blocks = stage == SUMS or stage == GRADIENT
    pieces = plan[PIECES] if of_blocks else 1
    last = kept.shape[0] - 1
    neighbours = kept[last, SIZE]
    together = plan[NEIGHBOURS] if pieces == 1 and stage != ADD else 1
    behind = stage >= CELLS and plan[BEHIND] != 0
    own = allocate((6, together), float64)
    ready = have((own,))
    rows = dweight.shape[0]
    t = t0 if ready else t1
    cell = t * outside // rows if stage == INSIDE else t
    while t < t1:
        b0 = 0
        b1 = blocks
        row = 0
        end = t1
        if of_blocks:
            run = t // pieces
            position = run // outside
            cell = run - position * outside
            b0 = position * pieces + t - run * pieces
            b1 = b0 + 1
            end = cell + t1 - t
        elif stage == INSIDE:
            row = t
            end = (t + 1) * outside // rows
            if cell == t * outside // rows:
                clear(dweight, row)
                clear(dbias, row)
        cells = least(together, least(end - cell, neighbours - cell % neighbours))
        home = offset(kept, cell, CELL)
        set_centers(state, home, cells, eps, center, False, own[MEAN], own[LOW], own[RSTD], 0)
        for k in range(cells):
            own[COUNT, k] = state[N, home + k]
            own[SUM, k] = totals[0, home + k] if stage == GRADIENT else 0.0
            own[PRODUCT, k] = totals[1, home + k] if stage == GRADIENT else 0.0
        if stage == ADD:
            for b in range(blocks):
                own[SUM, 0] += part[t * blocks + b, 0, 0]
                own[PRODUCT, 0] += part[t * blocks + b, 1, 0]
        elif stage != GRADIENT:
            for b in range(b0, b1):
                block_sums(x, dy, plan, kept, outer, cell, cells, b, own, weight, inside, dweight[row], dbias[row])
        if stage == SUMS:
            for k in range(cells):
                part[(cell + k) * blocks + b0, 0, 0] = own[SUM, k]
                part[(cell + k) * blocks + b0, 1, 0] = own[PRODUCT, k]
        elif stage != GRADIENT:
            for k in range(cells):
                totals[0, home + k] = own[SUM, k]
                totals[1, home + k] = own[PRODUCT, k]
                totals[2, home + k] = own[PRODUCT, k] * own[RSTD, k]
        if stage >= GRADIENT:
            for b in range(b0, b1):
                block_gradient(x, dx, dy, plan, kept, outer, cell, cells, b, own, weight, inside, through, center, behind)
        cell += cells
        if stage != INSIDE:
            t += cells
        elif cell == end:
            t += 1
    fence()
    release((own,))
    return 0 if ready else 1
