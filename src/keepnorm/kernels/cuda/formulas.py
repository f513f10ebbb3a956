"""What a kernel does with each value it meets: the formulas, once, for every family, dtype and width.

A thread has `wide` lanes. In registers, for each lane `j`:

========  ================================================================================================
c         what belongs to the cell: K or mean, then rstd, low * rstd, and two shares of the backward step
r         what belongs to the affine parameters: weight, bias (or, with the roles swapped, mean, rstd, low * rstd)
acc       the sums
========  ================================================================================================

``mean + low`` is the mean in two parts, so that ``hat = (x - mean) * rstd - low * rstd`` loses no digit to an offset. An
elementwise step joins c and r as soon as both are known, and keeps few numbers for each lane inside its loop::

    y = (x - mean) * (rstd w) + (b - low rstd w)
    dx = dy (rstd w) - (x - mean) (rstd^2 mean(g hat)) - rstd (mean(g) - low rstd mean(g hat))
"""

from functools import cache
from typing import Any, NamedTuple

from keepnorm.kernels.cuda.device import inlined, load, store
from keepnorm.kernels.cuda.numbers import difference, narrow, widen


class Types(NamedTuple):
    """The dtypes that a kernel is compiled for, by name ('' for an operand that is not there), and its width."""

    x: str
    y: str = ""
    z: str = ""
    w: str = ""
    wide: int = 1
    masked: bool = False
    bare: bool = False  # the sums of the backward step leave the weight out


class Body(NamedTuple):
    """What is done with one value (`one`) and with a vector: `fetch` loads it, `use` does the rest.

    `unroll` vectors are fetched before the first is used, so that they are on their way together. A mask is read value by
    value: there `fetch` and `use` are None. `join` prepares lane j once its parameters were read.
    """

    one: Any
    fetch: Any
    use: Any
    unroll: int
    sums: int
    rows: str
    join: Any


# How many sums each reduction has, and what its rows of parameters are.
SUMS = {"moments": 2, "masked": 3, "grads": 2, "swapped": 2}
ROWS = {"moments": "", "masked": "", "grads": "affine", "swapped": "swapped", "forward": "affine", "backward": "affine"}


@cache
def body(kind: str, t: Types) -> Body:
    """The body of a kind: a reduction (moments, masked, grads, swapped) or an elementwise step (forward, backward)."""
    if kind in SUMS:
        term, both = _term(kind, t)
        return _reduction(kind, t, term, both)
    return _elementwise(kind, t, _value(kind, t))


def _term(kind, t):
    """What one value adds to the sums of its lane, and whether that takes dy too."""
    wide = t.wide
    if kind in ("moments", "masked"):
        less = difference(t.x)

        def add(value, _, j, c, r, acc):
            d = less(value, c[j])
            acc[j] += d
            acc[wide + j] += d * d

        return inlined(add), False
    from_x, from_z = widen(t.x), widen(t.z)
    if kind == "grads":

        def add(value, dy, j, c, r, acc):
            g = from_z(dy) * r[j]
            hat = (from_x(value) - c[j]) * c[wide + j] - c[2 * wide + j]
            acc[j] += g
            acc[wide + j] += g * hat

    else:

        def add(value, dy, j, c, r, acc):
            g = from_z(dy)
            hat = (from_x(value) - r[j]) * r[wide + j] - r[2 * wide + j]
            acc[j] += g
            acc[wide + j] += g * hat

    return inlined(add), True


def _reduction(kind, t, term, both):
    wide, masked = t.wide, kind == "masked"
    one_x, one_mask = load(t.x, 1), load("bool", 1)
    one_z = load(t.z, 1) if both else None
    if masked:

        def one(o, ix, iy, iz, im, j, g):
            if one_mask(o.mask, im):
                term(one_x(o.x, ix), 0, j, g.c, g.r, g.acc)
                g.acc[2 * wide + j] += 1.0

        return Body(inlined(one), None, None, 1, 3, "", _no_join)
    if both:

        def one(o, ix, iy, iz, im, j, g):
            term(one_x(o.x, ix), one_z(o.z, iz), j, g.c, g.r, g.acc)

    else:

        def one(o, ix, iy, iz, im, j, g):
            term(one_x(o.x, ix), 0, j, g.c, g.r, g.acc)

    if wide == 1:

        def use(o, iy, values, dys, g):
            term(values, dys, 0, g.c, g.r, g.acc)

    elif both:

        def use(o, iy, values, dys, g):
            for j in range(wide):
                term(values[j], dys[j], j, g.c, g.r, g.acc)

    else:

        def use(o, iy, values, dys, g):
            for j in range(wide):
                term(values[j], 0, j, g.c, g.r, g.acc)

    return Body(inlined(one), _fetch(t, both), inlined(use), 2 if both else 4, 2, ROWS[kind], _no_join)


def _fetch(t, both):
    """A loader of a vector of x, and of dy where it is needed."""
    all_x = load(t.x, t.wide)
    if both:
        all_z = load(t.z, t.wide)

        def fetch(o, ix, iz):
            return all_x(o.x, ix), all_z(o.z, iz)

    else:

        def fetch(o, ix, iz):
            return all_x(o.x, ix), 0

    return inlined(fetch)


def _value(kind, t):
    """The result for one value."""
    wide = t.wide
    from_x, to_y = widen(t.x), narrow(t.y)
    if kind == "forward":

        def value(given, _, seen, j, c, r):
            return to_y((from_x(given) - c[j]) * r[j] + r[wide + j])

        return inlined(value)
    from_z = widen(t.z)

    def value(given, dy, seen, j, c, r):
        slope = seen * c[3 * wide + j]  # 0 with given moments, whatever x is
        moved = (from_x(given) - c[j]) * slope if slope != 0.0 else 0.0
        return to_y(from_z(dy) * r[j] - (moved + seen * c[4 * wide + j]))

    return inlined(value)


@inlined
def _no_join(c, r, j):
    """A reduction takes its parameters as they are."""


def _join(kind, wide):
    """Join weight and bias with what normalises the cell."""
    if kind == "forward":

        def join(c, r, j):
            r[wide + j] -= r[j] * c[2 * wide + j]
            r[j] *= c[wide + j]

    else:

        def join(c, r, j):
            r[j] *= c[wide + j]

    return inlined(join)


def _elementwise(kind, t, value):
    wide, backward = t.wide, kind == "backward"
    one_x, one_y, all_y = load(t.x, 1), store(t.y, 1), store(t.y, wide)
    one_z, one_mask = load(t.z, 1) if backward else None, load("bool", 1)
    rows, join = ROWS[kind], _join(kind, wide)
    if t.masked:

        def one(o, ix, iy, iz, im, j, g):
            seen = 1.0 if one_mask(o.mask, im) else 0.0
            one_y(o.y, iy, value(one_x(o.x, ix), one_z(o.z, iz), seen, j, g.c, g.r))

        return Body(inlined(one), None, None, 1, 0, rows, join)
    if backward:

        def one(o, ix, iy, iz, im, j, g):
            one_y(o.y, iy, value(one_x(o.x, ix), one_z(o.z, iz), 1.0, j, g.c, g.r))

    else:

        def one(o, ix, iy, iz, im, j, g):
            one_y(o.y, iy, value(one_x(o.x, ix), 0, 1.0, j, g.c, g.r))

    if wide == 1:

        def use(o, iy, values, dys, g):
            one_y(o.y, iy, value(values, dys, 1.0, 0, g.c, g.r))

    else:
        pack = inlined(_tuple_of(wide, value))
        if backward:

            def use(o, iy, values, dys, g):
                all_y(o.y, iy, pack(values, dys, g))

        else:

            def use(o, iy, values, dys, g):
                all_y(o.y, iy, pack(values, _NOTHING, g))

    return Body(inlined(one), _fetch(t, backward), inlined(use), 2 if backward else 4, 0, rows, join)


# Stands for the operand dy that a forward step does not have.
_NOTHING = (0, 0, 0, 0, 0, 0, 0, 0)


def _tuple_of(wide, value):
    """A maker of the tuple of `wide` results: written out, since the length of a tuple is a part of its type."""

    def two(x, z, g):
        return value(x[0], z[0], 1.0, 0, g.c, g.r), value(x[1], z[1], 1.0, 1, g.c, g.r)

    def four(x, z, g):
        return (
            value(x[0], z[0], 1.0, 0, g.c, g.r),
            value(x[1], z[1], 1.0, 1, g.c, g.r),
            value(x[2], z[2], 1.0, 2, g.c, g.r),
            value(x[3], z[3], 1.0, 3, g.c, g.r),
        )

    def eight(x, z, g):
        return (
            value(x[0], z[0], 1.0, 0, g.c, g.r),
            value(x[1], z[1], 1.0, 1, g.c, g.r),
            value(x[2], z[2], 1.0, 2, g.c, g.r),
            value(x[3], z[3], 1.0, 3, g.c, g.r),
            value(x[4], z[4], 1.0, 4, g.c, g.r),
            value(x[5], z[5], 1.0, 5, g.c, g.r),
            value(x[6], z[6], 1.0, 6, g.c, g.r),
            value(x[7], z[7], 1.0, 7, g.c, g.r),
        )

    return {1: two, 2: two, 4: four, 8: eight}[wide]
