"""The plan, alone: pure integers that reach every element exactly once, in the right cell, under the right parameters."""

from collections import Counter
from itertools import product
from math import prod

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keepnorm import plan as plan_module
from keepnorm.plan import make_plan


def contiguous(shape, order=None):
    """Strides in elements of an array stored with its axes in `order`, outermost first."""
    strides, step = [0] * len(shape), 1
    for a in reversed(range(len(shape)) if order is None else order):
        strides[a], step = step, step * shape[a]
    return tuple(strides)


@st.composite
def walks(draw, most=400):
    """A shape, kept and affine axes, and strides of x, y, dy and a mask: any order, sign, gap or broadcast."""
    ndim = draw(st.integers(0, 5))
    sizes = st.sampled_from([1, 1, 2, 3, 4, 5, 7]) if ndim > 2 else st.sampled_from([1, 2, 7, 64, 130])
    shape = tuple(draw(st.lists(sizes, min_size=ndim, max_size=ndim)))
    while prod(shape) > most:
        shape = tuple(max(1, n // 2) for n in shape)
    axes = st.sets(st.sampled_from(range(ndim))) if ndim else st.just(set())
    keep, affine = (tuple(sorted(draw(axes))) for _ in range(2))
    strides = []
    for operand in range(4):
        steps = list(contiguous(shape, draw(st.permutations(range(ndim)))))
        gap = draw(st.sampled_from([1, 1, 2]))
        signs = draw(st.lists(st.sampled_from([1, 1, 1, -1] + [0] * (operand in (0, 3))), min_size=ndim, max_size=ndim))
        strides.append(tuple(gap * sign * step for sign, step in zip(signs, steps, strict=True)))
    return shape, keep, affine, tuple(strides)


def index_in(order, at, shape):
    """The position of an element among the cells: the axes of `order`, outermost first, some of them turned round."""
    index = 0
    for a, turned in order:
        index = index * shape[a] + (shape[a] - 1 - at[a] if turned else at[a])
    return index


@given(walks())
@example(((2, 3, 4, 5), (1,), (1,), (contiguous((2, 3, 4, 5)),) * 4))
@example(((40, 3), (1,), (1,), (contiguous((40, 3)),) * 4))
@example(((130, 1, 3), (0, 2), (2,), ((-3, 3, 1), (3, 3, 1), (3, 3, 1), (0, 0, 0))))
@example(((), (), (), ((),) * 4))
def test_every_element_once_in_its_cell_with_its_parameters(walk):
    shape, keep, affine, strides = walk
    plan = make_plan(shape, keep, affine, strides, 4)
    expected = Counter()
    for at in product(*map(range, shape)):
        x, y, _, mask = (sum(i * step for i, step in zip(at, steps, strict=True)) for steps in strides)
        expected[index_in(plan.cell_order, at, shape), index_in(plan.affine_order, at, shape), x, y, mask] += 1
    assert Counter(element[1:] for element in plan.elements()) == expected


@given(walks())
def test_counts_are_those_of_the_shape(walk):
    shape, keep, affine, strides = walk
    plan = make_plan(shape, keep, affine, strides, 4)
    assert plan.cells == prod(shape[a] for a in keep)
    assert plan.count == prod(n for a, n in enumerate(shape) if a not in keep)
    assert sorted(a for a, _ in plan.cell_order if shape[a] > 1) == [a for a in keep if shape[a] > 1]
    assert sorted(a for a, _ in plan.affine_order if shape[a] > 1) == [a for a in affine if shape[a] > 1]


LARGE = [
    ((32, 64, 56, 56), (1,)),
    ((32, 56, 56, 64), (3,)),
    ((128, 3, 224, 224), (1,)),
    ((128, 224, 224, 3), (3,)),
    ((65536, 128), (1,)),
    ((3, 1000003), (0,)),
    ((40001, 7), (1,)),
    ((1000003,), ()),
    ((16, 2048, 7, 7), (1,)),
    ((100000, 8), (0,)),
    ((70000, 2, 3), (1,)),
]


@pytest.mark.parametrize(("shape", "keep"), LARGE)
def test_blocks_cover_the_reduced_positions_without_gap_or_overlap(shape, keep):
    plan = make_plan(shape, keep, keep, (contiguous(shape),), 4)
    at_position = Counter()
    edges = set()
    for b in range(plan.blocks):
        p0, p1, i0, i1 = plan.block(b)
        assert 0 <= p0 < p1 <= plan.positions
        assert 0 <= i0 < i1 <= plan.inner.size
        for position in range(p0, p1):
            at_position[position] += i1 - i0
            edges.add((position, i0))
    assert len(at_position) == plan.positions
    assert set(at_position.values()) == {plan.inner.size}
    assert len(edges) == sum(p1 - p0 for p0, p1, _, _ in map(plan.block, range(plan.blocks)))


def reduction(plan):
    """Everything that decides in which order the values of one cell are added."""
    return plan.lanes, plan.lane_reduced.size, plan.fold, [plan.block(b) for b in range(plan.blocks)]


BATCHED = {
    "layer norm": ((None, 768), (0,), (1,)),
    "layer norm, short": ((None, 50), (0,), (1,)),
    "layer norm of sequences": ((None, 16, 64), (0, 1), (2,)),
    "instance norm": ((None, 64, 7, 7), (0, 1), (1,)),
    "instance norm, large": ((None, 8, 224, 224), (0, 1), (1,)),
    "instance norm, channels last": ((None, 7, 7, 64), (0, 3), (3,)),
    "instance norm, photographs": ((None, 224, 224, 3), (0, 3), (3,)),
    "group norm": ((None, 8, 4, 7, 7), (0, 1), (1, 2)),
    "group norm, channels last": ((None, 7, 7, 8, 4), (0, 3), (3, 4)),
}


@pytest.mark.parametrize("name", BATCHED)
def test_the_order_of_a_sum_does_not_depend_on_how_many_samples_lie_beside_it(name):
    shape, keep, affine = BATCHED[name]
    orders = []
    for batch in (1, 2, 3, 64, 1000):
        sizes = (batch, *shape[1:])
        orders.append(reduction(make_plan(sizes, keep, affine, (contiguous(sizes),), 4)))
    assert all(order == orders[0] for order in orders)


@pytest.fixture
def on_cores(monkeypatch):
    """Make plans for so many cores."""

    def choose(cores):
        monkeypatch.setattr(plan_module, "CORES", cores)
        make_plan.cache_clear()

    yield choose
    make_plan.cache_clear()


@pytest.mark.parametrize(
    ("shape", "keep", "chunk", "fused"),
    [
        ((256, 1024), (1,), 512, True),  # half of them for each of two threads
        ((16, 256), (1,), 256, True),  # all of them where one thread takes less time than two
        ((256, 1536), (1,), 384, True),  # not 512, which makes three
        ((100, 300), (1,), 160, True),  # whole cache lines of float32
        ((16, 256, 128), (0, 2), 128, True),  # other cells keep the other threads busy
        ((257, 1024), (1,), 1024, False),
        ((512, 1024), (1,), 1024, False),
        ((2048, 256), (1,), 256, False),
        ((1024, 128), (1,), 64, True),  # all of x fits
        ((4096, 1536), (1,), 768, False),  # not 1024 and 512
    ],
    ids=str,
)
def test_rows_of_lanes_are_cut_where_they_are_few(shape, keep, chunk, fused, on_cores):
    on_cores(2)
    plan = make_plan(shape, keep, keep, (contiguous(shape),), 4)
    assert plan.lanes
    assert (plan.chunk, plan.fused) == (chunk, fused)


@pytest.mark.parametrize(
    ("shape", "itemsize", "cores", "chunk"),
    [
        ((512, 1024), 4, 16, 128),  # eight for each of two blocks
        ((512, 1024), 4, 1000, 64),
        ((4096, 1024), 4, 16, 1024),  # sixteen blocks
        ((600, 200), 8, 2, 112),  # one block
    ],
    ids=str,
)
def test_rows_of_lanes_are_cut_where_there_are_more_cores_than_blocks(shape, itemsize, cores, chunk, on_cores):
    on_cores(cores)
    plan = make_plan(shape, (1,), (1,), (contiguous(shape),), itemsize)
    assert not plan.fused
    assert plan.chunk == chunk


def test_neighbours_with_one_role_merge():
    plan = make_plan((32, 64, 56, 56), (1,), (1,), (contiguous((32, 64, 56, 56)),), 4)
    assert (len(plan.kept), len(plan.outer), plan.inner.size) == (1, 1, 56 * 56)


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 3, 2)])
def test_a_layout_is_what_it_is_in_memory(order):
    """A stored permutation of the axes plans like the array that was never permuted."""
    shape = (8, 5, 6, 7)
    stored = tuple(shape[a] for a in order)
    permuted = make_plan(shape, (1,), (1,), (contiguous(shape, order),), 4)
    plain = make_plan(stored, (order.index(1),), (order.index(1),), (contiguous(stored),), 4)
    assert reduction(permuted) == reduction(plain)
    assert permuted.inner.size == plain.inner.size


def test_a_plan_is_made_once():
    arguments = ((8, 5), (1,), (1,), ((5, 1),), 4)
    assert make_plan(*arguments) is make_plan(*arguments)
