"""What keep means as integers: every axis gets one role, and everything else is an error that says what was got."""

from itertools import combinations
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepnorm import axes as kept_axes
from keepnorm.axes import resolve

SHAPE = (2, 3, 4, 5)


def subsets(ndim):
    return [keep for size in range(ndim + 1) for keep in combinations(range(ndim), size)]


@pytest.mark.parametrize("keep", subsets(4), ids=str)
def test_kept_and_reduced_axes_share_out_the_axes(keep):
    axes = resolve(SHAPE, keep)
    assert axes.keep == keep
    assert sorted(axes.keep + axes.reduce) == [0, 1, 2, 3]
    assert axes.kept_shape == tuple(SHAPE[a] for a in keep)
    assert axes.count * prod(axes.kept_shape) == prod(SHAPE)
    assert axes.broadcast_shape == tuple(n if a in keep else 1 for a, n in enumerate(SHAPE))
    assert axes.shape == axes.source == SHAPE
    assert axes.affine == keep


@given(st.integers(1, 5).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(-n, n - 1)))))
def test_negative_axes_count_from_the_end(case):
    ndim, keep = case
    shape = tuple(range(2, ndim + 2))
    positive = {a % ndim for a in keep}
    if len(positive) < len(keep):
        with pytest.raises(ValueError, match="twice"):
            resolve(shape, tuple(keep))
    else:
        assert resolve(shape, tuple(keep)) == resolve(shape, tuple(sorted(positive)))


def test_the_order_of_the_kept_axes_does_not_matter():
    assert resolve(SHAPE, (3, 1)) == resolve(SHAPE, (1, 3))


@pytest.mark.parametrize("keep", [1, (1,), [1], np.int64(1), np.array([1]), range(1, 2), -3])
def test_an_int_and_every_sequence_of_ints_say_the_same(keep):
    assert resolve(SHAPE, keep) == resolve(SHAPE, (1,))


def test_keep_nothing_and_keep_all():
    assert (resolve(SHAPE, ()).count, resolve(SHAPE, ()).kept_shape) == (120, ())
    assert (resolve(SHAPE, (0, 1, 2, 3)).count, resolve(SHAPE, (0, 1, 2, 3)).kept_shape) == (1, SHAPE)
    assert resolve((), ()).count == 1


def test_affine_axes_have_a_life_of_their_own():
    axes = resolve(SHAPE, (0, 1), affine=(2, -1))
    assert (axes.keep, axes.affine) == ((0, 1), (2, 3))
    assert axes.affine_shape == axes.source_affine_shape == (4, 5)
    assert axes.affine_broadcast_shape == (1, 1, 4, 5)
    assert resolve(SHAPE, 1, affine=()).affine_shape == ()


@pytest.mark.parametrize("name", ["keep", "affine"])
@pytest.mark.parametrize("wrong", [4, -5, (0, 4), (1, -7)])
def test_an_axis_out_of_range(name, wrong):
    arguments = {"keep": 1, name: wrong}
    last = wrong if isinstance(wrong, int) else wrong[1]
    with pytest.raises(ValueError, match=rf"{name}=.*shape \(2, 3, 4, 5\).*between -4 and 3; got {last}"):
        resolve(SHAPE, **arguments)


@pytest.mark.parametrize("name", ["keep", "affine"])
@pytest.mark.parametrize("wrong", [(1, 1), (1, -3), (0, 2, -2)])
def test_an_axis_given_twice(name, wrong):
    with pytest.raises(ValueError, match=rf"{name} names an axis .*\(2, 3, 4, 5\) twice; got \("):
        resolve(SHAPE, **({"keep": 1} | {name: wrong}))


@pytest.mark.parametrize("name", ["keep", "affine"])
@pytest.mark.parametrize("wrong", [1.0, True, (1, False), (1.0,), {"c": 1}.values, object(), ("c",)])
def test_what_is_no_axis(name, wrong):
    with pytest.raises(TypeError, match=rf"{name} must .*ints.*; got "):
        resolve(SHAPE, **({"keep": 1} | {name: wrong}))


def test_keep_none_is_no_default():
    with pytest.raises(TypeError, match="keep must be an int or a tuple of ints; got None"):
        resolve(SHAPE, None)


@pytest.mark.parametrize("word", ["axis", "dim", "axes", "feature_axes"])
def test_a_bare_axis_teaches_the_difference(word):
    with pytest.raises(TypeError, match=rf"{word}=1 is ambiguous: np.mean.* reduce .*keeps it. Say keep= .*survive"):
        resolve(SHAPE, 1, sizes={word: 1})
    with pytest.raises(TypeError, match=rf"{word}=\[1, 2\] is ambiguous"):
        resolve(SHAPE, 1, sizes={word: [1, 2]})


def test_momentum_is_ambiguous():
    with pytest.raises(TypeError, match=r"momentum=0.9 is ambiguous: .*old share in Keras.*new share in PyTorch.*decay="):
        resolve(SHAPE, 1, sizes={"momentum": 0.9})


def test_another_keyword_is_not_swallowed():
    with pytest.raises(TypeError, match="unexpected keyword g=2"):
        resolve(SHAPE, 1, sizes={"g": 2})


@given(
    st.lists(st.integers(0, 5), max_size=5).flatmap(
        lambda shape: st.tuples(st.just(shape), st.sets(st.integers(0, max(len(shape) - 1, 0)), max_size=len(shape)))
    )
)
def test_the_complement_of_the_complement(case):
    shape, reduced = case
    kept = kept_axes.complement(tuple(reduced), len(shape), tuple(shape))
    assert set(kept) == set(range(len(shape))) - reduced
    assert kept_axes.complement(kept, len(shape), tuple(shape)) == tuple(sorted(reduced))
