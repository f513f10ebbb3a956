"""Synchronised batch norm: ranks with a part each give what one rank with the whole batch gives."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import ml_dtypes
import numpy as np
import pytest

import keepnorm as kn
from keepnorm import sync
from tests import oracle
from tests.tolerance import assert_gradient, assert_output, assert_within, ulp


class Ranks:
    """Threads that tell each other what they have: the sum of all, in the order of the ranks."""

    def __init__(self, number):
        self.said = [None] * number
        self.barrier = Barrier(number, timeout=300)  # kernels may compile between two of them

    def total(self, rank, value):
        self.said[rank] = value
        self.barrier.wait()
        total = sum(self.said)
        self.barrier.wait()
        return total

    def run(self, work):
        with ThreadPoolExecutor(len(self.said)) as pool:
            return list(pool.map(lambda rank: work(rank, lambda value: self.total(rank, value)), range(len(self.said))))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_three_ranks_are_one_batch(rng, masked, affine):
    cuts = [2, 3]  # parts of different sizes
    x, dy = (rng.standard_normal((2, 8, 4, 5)) * 3 + 2).astype("f4")
    where = rng.random((8, 1, 5)) < 0.6 if masked else np.ones((8, 1, 5), bool)
    weight, bias = rng.random((2, 4)).astype("f4") if affine else (None, None)
    parts, gradients, masks = (np.split(a, cuts) for a in (x, dy, where))

    def work(rank, total):
        bn = kn.BatchNorm(4, keep=1)
        bn.weight, bn.bias = weight, bias
        mask = masks[rank] if masked else None
        y, vjp = sync.vjp(bn, parts[rank], total, total, where=mask)
        again = kn.BatchNorm(4, keep=1)
        again.weight, again.bias = weight, bias
        np.testing.assert_array_equal(sync.forward(again, parts[rank], total, where=mask), y)
        return bn, y, vjp(gradients[rank])

    bns, ys, got = zip(*Ranks(3).run(work), strict=True)
    assert_output(np.concatenate(ys), oracle.normalize(x, 1, weight, bias, where=where), x.size)
    dx, dweight, dbias, _ = oracle.gradients(x, dy, 1, weight, where=where)
    assert_gradient(np.concatenate([g.x for g in got]), dx, np.abs(dx).max(), x.size)
    if affine:
        assert_gradient(sum(g.weight for g in got), dweight, np.abs(dweight).max(), x.size)
        assert_gradient(sum(g.bias for g in got), dbias, np.abs(dbias).max(), x.size)
    else:
        assert {g[1:] for g in got} == {(None, None)}
    one = kn.BatchNorm(4, keep=1)
    one(x, training=True, where=where if masked else None)
    for bn in bns:
        np.testing.assert_array_equal(bn.state.mean, bns[0].state.mean)
        assert_within(bn.state.mean, one.state.mean, ulp(one.state.mean, "f4"))
        assert_within(bn.state.var, one.state.var, ulp(one.state.var, "f4"))
        np.testing.assert_array_equal(bn.state.count, one.state.count)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_one_rank_has_the_gradient_of_batch_norm_far_from_zero(rng, dtype):
    x, dy = np.add(rng.standard_normal((2, 64, 4)), [[[0]], [[100]]]).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    bn = kn.BatchNorm(4, keep=1)
    bn.weight = (rng.random(4) + 0.5).astype("f4")
    got = sync.vjp(bn, x, lambda own: own, lambda sums: sums)[1](dy)
    dx, dweight, _, terms = oracle.gradients(x, dy, 1, bn.weight)
    assert_gradient(got.x, dx, np.abs(dx).max(), 64, terms=terms)
    assert_gradient(got.weight, dweight, np.abs(dweight).max(), 64, terms=100 * 64)
