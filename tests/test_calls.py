"""A repeated call is short: how many functions of keepnorm it calls, in how many of its files."""

import sys
from pathlib import Path

import numpy as np
import pytest

import keepnorm as kn

SOURCE = str(Path(kn.__file__).parent)


def calls(function):
    """The functions of keepnorm that a call of `function` calls, once it has been called before."""
    for _ in range(3):
        function()
    seen = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(SOURCE):
            seen.append(frame.f_code)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return seen


X = np.random.default_rng(5).standard_normal((8, 64)).astype("f4")
W, B = np.ones(64, "f4"), np.zeros(64, "f4")
GIVEN = kn.moments(X, 1)

REPEATED = {
    "normalize": (lambda: kn.normalize(X, 1, W, B), 15, 6),
    "layer_norm": (lambda: kn.layer_norm(X, W, B, axes=-1), 15, 6),
    "out": (lambda: kn.normalize(X, 1, W, B, out=np.empty_like(X)), 15, 6),
    "given moments": (lambda: kn.normalize(X, 1, W, B, moments=GIVEN), 15, 6),
    "affine": (lambda: kn.affine(X, W, B, keep=1), 15, 6),
    "moments": (lambda: kn.moments(X, 1), 15, 6),
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_repeated_call_is_short(name):
    function, most_calls, most_files = REPEATED[name]
    seen = calls(function)
    assert len(seen) <= most_calls, [code.co_name for code in seen]
    assert len({code.co_filename for code in seen}) <= most_files


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "u1", "i8"])
@pytest.mark.parametrize("keep", [0, 1, (), (0, 1)])
def test_the_second_call_gives_what_the_first_gave(rng, dtype, keep):
    x = (rng.standard_normal((5, 12)) * 20 + 100).astype(dtype)
    first, second = kn.moments(x, keep), kn.moments(x, keep)
    moved = kn.moments(np.asfortranarray(x), keep)
    for name in ("mean", "var"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        np.testing.assert_allclose(getattr(first, name), getattr(moved, name), rtol=1e-12 if dtype in ("f8", "i8") else 0)
    w, b = (rng.standard_normal(first.shape).astype("f4") for _ in range(2))
    for parameters in ((w, b), (w, None), (None, b), (None, None)):
        given = [kn.normalize(x, keep, *parameters, moments=first) for _ in range(3)]
        other = kn.normalize(np.asfortranarray(x), keep, *parameters, moments=first)
        for y in (*given[1:], other):
            np.testing.assert_array_equal(y, given[0])
    scaled = [kn.affine(x, w, shift, keep=keep) for shift in (b, None) for _ in range(2)]
    np.testing.assert_array_equal(scaled[0], scaled[1])
    np.testing.assert_array_equal(scaled[2], scaled[3])
    np.testing.assert_array_equal(kn.affine(np.asfortranarray(x), w, b, keep=keep), scaled[0])


def test_the_fast_path_refuses_what_the_long_one_refuses():
    for _ in range(3):
        kn.normalize(X, 1, W, B, moments=GIVEN)
    for wrong in ({"eps": -1.0}, {"eps": "1"}, {"center": 1}, {"moments": kn.moments(X, 0)}, {"out": np.empty((8, 63), "f4")}):
        with pytest.raises((TypeError, ValueError)):
            kn.normalize(X, 1, W, B, **{"moments": GIVEN} | wrong)
    negative = kn.Moments.from_mean_var(np.zeros(64), np.full(64, -1.0), keep=1, ndim=2)
    with pytest.raises(ValueError, match="must not be below 0"):
        kn.normalize(X, 1, W, B, moments=negative)
    assert np.shares_memory(kn.normalize(X, 1, W, B, moments=GIVEN, out=(y := np.empty_like(X))), y)
