"""No variance, an endless one, infinities, NaN under a mask: the device answers as the processor does."""

import numpy as np
import pytest

from keepnorm.moments import Moments
from tests.cuda.device import measure, normalize, normalize_vjp

SHAPES = [((5, 3), 1, None), ((3, 40), 0, None), ((3, 40), 0, 1)]


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("shape", "keep", "affine"), SHAPES)
def test_without_variance_and_eps_the_result_is_the_bias_and_the_gradients_are_zero(shape, keep, affine, center):
    x, n = np.full(shape, 7 if center else 0, "f4"), shape[keep if affine is None else affine]
    weight, bias = np.full(n, 2, "f4"), np.full(n, 3, "f4")
    given = Moments.from_mean_var(*np.zeros((2, shape[keep])), keep=keep, ndim=2)
    for moments in (None, given):
        y, vjp = normalize_vjp(x, keep, weight, bias, affine=affine, eps=0.0, center=center, moments=moments)
        np.testing.assert_array_equal(y, 3)
        gradients = vjp(np.ones(shape, "f4"))
        np.testing.assert_array_equal(gradients.x, 0)
        np.testing.assert_array_equal(gradients.weight, 0)


@pytest.mark.parametrize(("shape", "keep", "affine"), SHAPES)
def test_infinite_variances_and_values(rng, shape, keep, affine):
    x, dy = rng.standard_normal((2, *shape)).astype("f4")
    endless = Moments.from_mean_var(np.zeros(shape[keep]), np.full(shape[keep], np.inf), keep=keep, ndim=2)
    np.testing.assert_array_equal(normalize(x, keep, moments=endless), 0)
    cells = x if keep == 0 else x.T
    cells[0, :2] = np.inf, -np.inf
    y, vjp = normalize_vjp(x, keep, affine=affine, center=False)
    finite, first = np.isfinite(x), np.zeros(shape, bool)
    (first if keep == 0 else first.T)[0] = True
    np.testing.assert_array_equal(y[finite & first], 0)
    np.testing.assert_array_equal(vjp(dy).x[finite & first], 0)
    assert np.isnan(measure(x, keep).var[0])
    given = Moments.from_mean_var(np.zeros(shape[keep]), np.ones(shape[keep]), keep=keep, ndim=2)
    np.testing.assert_array_equal(normalize_vjp(x, keep, moments=given, eps=0.0)[1](dy).x, dy)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("shape", "keep", "affine"), SHAPES)
def test_what_a_mask_leaves_out_has_no_part_in_the_gradients_of_others(rng, shape, keep, affine, center):
    x, dy = rng.standard_normal((2, *shape)).astype("f4")
    n = shape[keep if affine is None else affine]
    weight, bias = rng.standard_normal((2, n)).astype("f4")
    where, filled = np.ones(shape, bool), x.copy()
    where[1, 2] = where[2, 1] = False
    x[1, 2], x[2, 1] = np.nan, np.inf
    rest = {"affine": affine, "center": center}
    got = normalize_vjp(x, keep, weight, bias, where=where, **rest)[1](dy)
    want = normalize_vjp(filled, keep, weight, bias, where=where, **rest)[1](np.where(where, dy, 0))
    np.testing.assert_array_equal(got.x[where], want.x[where])
    np.testing.assert_array_equal(got.weight, want.weight)
    np.testing.assert_array_equal(got.bias, want.bias)
    own = normalize_vjp(filled, keep, weight, bias, moments=measure(filled, keep, where), **rest)[1](dy)
    np.testing.assert_array_equal(got.x[~where], own.x[~where])
