"""Patterns name what survives: they say the same as integers, split grouped axes, and are read strictly."""

import pytest

from keepnorm.axes import resolve

NCHW = (2, 6, 4, 5)


@pytest.mark.parametrize(
    ("pattern", "keep"),
    [
        ("n c h w -> c", (1,)),
        ("n c h w->n c", (0, 1)),
        ("  n   c h w ->n w ", (0, 3)),
        ("n c h w ->", ()),
        ("n c h w -> n c h w", (0, 1, 2, 3)),
        ("n ... -> n", (0,)),
        ("... w -> w", (3,)),
        ("n ... w -> ...", (1, 2)),
        ("n c h w ... -> c", (1,)),
        ("batch channel_1 h W -> channel_1", (1,)),
        ("n c h w -> 1 c 1 1", (1,)),
        ("n c h w -> 1", ()),
    ],
)
def test_a_pattern_says_the_same_as_integers(pattern, keep):
    assert resolve(NCHW, pattern) == resolve(NCHW, keep)


def test_a_one_is_an_axis_of_size_one():
    assert resolve((3, 1, 5), "n 1 c -> c").keep == (2,)
    with pytest.raises(ValueError, match=r"axis 1 of x with shape \(3, 2, 5\) has size 2"):
        resolve((3, 2, 5), "n 1 c -> c")


def test_groups_split_an_axis():
    axes = resolve(NCHW, "n (g c) h w -> n g", "g c", {"g": 2})
    assert axes.source == NCHW
    assert axes.shape == (2, 2, 3, 4, 5)
    assert axes.kept_shape == (2, 2)
    assert axes.count == 3 * 4 * 5
    assert axes.affine_shape == (2, 3)
    assert axes.source_affine_shape == (6,)


def test_the_missing_size_is_found_and_two_are_not():
    assert resolve(NCHW, "n (g c) h w -> n g", sizes={"c": 3}).shape == (2, 2, 3, 4, 5)
    assert resolve(NCHW, "n (g c) h w -> n g", sizes={"c": 3, "g": 2}).shape == (2, 2, 3, 4, 5)
    assert resolve((24,), "(a b c) -> b", sizes={"a": 2, "b": 3}).shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"needs a size for all but one of \['g', 'c'\], such as g=32; got \{\}"):
        resolve(NCHW, "n (g c) h w -> n g")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"g": 4}, r"axis 1 of x with shape \(2, 6, 4, 5\) has size 6, which does not split into \(g c\) with g=4"),
        ({"g": 2, "c": 4}, r"does not split into \(g c\) with c=4, g=2"),
        ({"g": 0}, "needs sizes of at least 1; got {'g': 0}"),
        ({"g": -2}, "needs sizes of at least 1; got {'g': -2}"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        resolve(NCHW, "n (g c) h w -> n g", sizes=sizes)


@pytest.mark.parametrize("size", [2.0, True, "2", None])
def test_a_size_is_an_int(size):
    with pytest.raises(TypeError, match=rf"g must be an int, .*; got g={size!r}"):
        resolve(NCHW, "n (g c) h w -> n g", sizes={"g": size})


def test_a_size_that_the_pattern_does_not_name():
    with pytest.raises(TypeError, match="unexpected keyword k=2"):
        resolve(NCHW, "n (g c) h w -> n g", sizes={"g": 2, "k": 2})
    with pytest.raises(TypeError, match="axis=1 is ambiguous"):
        resolve(NCHW, "n c h w -> c", sizes={"axis": 1})


def test_affine_by_name_by_int_and_by_default():
    assert resolve((2, 3, 4), "b t d -> b t", "d").affine == (2,)
    assert resolve((2, 3, 4), "b t d -> b t", -1).affine == (2,)
    assert resolve((2, 3, 4), "b t d -> b t").affine == (0, 1)
    assert resolve((2, 3, 4), "b t d -> b t", "t d").affine == (1, 2)
    assert resolve((2, 3, 4), "b ... -> b", "...").affine == (1, 2)
    with pytest.raises(ValueError, match="affine='d' names axes of a pattern, so keep must be a pattern"):
        resolve((2, 3, 4), (0, 1), "d")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("n c h w", "is no pattern: write the axes of x, '->'"),
        ("c", "is no pattern"),
        ("n c h -> c", r"has 3 axes, but x has shape \(2, 6, 4, 5\)"),
        ("n c h w d -> c", r"has 5 axes, but x has shape \(2, 6, 4, 5\)"),
        ("a b c d e ... -> c", r"x has shape \(2, 6, 4, 5\)"),
        ("n n h w -> h", "names axis 'n' twice"),
        ("n c h w -> c c", "names an axis twice"),
        ("n c h w -> k", "names 'k', which is not an axis of x"),
        ("n c h w -> h c", "reorders axes"),
        ("n ... ... -> n", "more than one ..."),
        ("n (g (c)) h w -> n", "parenthesis inside a parenthesis"),
        ("n (g c h w -> n", "not closed"),
        ("n g c) h w -> n", "closes a parenthesis that holds nothing"),
        ("n () h w -> n", "closes a parenthesis that holds nothing"),
        ("n (g ...) h w -> n", "... inside a parenthesis"),
        ("n c h w -> (n c)", r"must list single names; got \(n c\)"),
        ("n c-d h w -> n", "cannot be read at"),
        ("n 2 h w -> n", "cannot be read at"),
        ("n 12 h w -> n", "cannot be read at"),
        ("n c h w -> n -> c", "cannot be read at"),
    ],
)
def test_what_cannot_be_read(pattern, message):
    with pytest.raises(ValueError, match=message):
        resolve(NCHW, pattern)


def test_a_pattern_can_use_any_identifier():
    assert resolve((2, 3), "größe _x -> _x").keep == (1,)
