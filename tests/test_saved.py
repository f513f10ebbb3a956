"""Saved states: whatever numpy, json and msgpack make of them comes back to the last bit, and nonsense is refused by name."""

import io
import json

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.renorm import BatchRenorm


def npz(state):
    """By way of numpy.savez: arrays without axes for numbers and words, objects for None."""
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return np.load(file, allow_pickle=True)


def msgpack(state):
    """As readers of msgpack give it back: bytes for words, tuples for lists."""

    def packed(value):
        if isinstance(value, list):
            return tuple(map(packed, value))
        return value.encode() if isinstance(value, str) else value

    return {key.encode(): packed(value) for key, value in state.items()}


def scalars(state):
    """As zarr's and HDF5's attributes give it back: arrays, and numbers and words of NumPy."""
    kinds = {bool: np.bool_, int: np.int64, float: np.float64, str: np.str_, list: np.array}
    return {key: kinds.get(type(value), lambda v: v)(value) for key, value in state.items()}


WAYS = [npz, msgpack, scalars, lambda state: json.loads(json.dumps(state))]


def moments():
    x = np.random.default_rng(5).standard_normal((4, 3)) + 0.1
    yield kn.moments(x, 1)
    yield kn.moments(x.astype("f4"), ())
    yield kn.moments(x, 1, where=x > 0)
    yield kn.moments(np.zeros((4, 0)), 1)
    yield kn.moments(x[:0], 1)
    yield kn.Moments.from_mean_var(np.zeros(3), np.array([1.0, 0.0, -4.9e-6]), keep=1, ndim=2)


@pytest.mark.parametrize("way", WAYS)
def test_moments_come_back_from_every_format(way):
    for m in moments():
        assert kn.Moments.from_dict(way(m.to_dict())).to_dict() == m.to_dict()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [kn.BatchNorm, BatchRenorm])
def test_a_batch_norm_comes_back_from_every_format(rng, way, kind):
    x = rng.standard_normal((5, 6)).astype("f4")
    for options in ({"decay": None, "empty": "nan"}, {"dtype": "float64"}, {"affine": False}):
        bn = kind(6, keep=1, singleton="zero", **options)
        assert kind.from_dict(way(bn.to_dict())).to_dict() == bn.to_dict()
        bn(x, training=True, where=x > -1)
        assert kind.from_dict(way(bn.to_dict())).to_dict() == bn.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m2": [-1.0, 1.0]}, "m2, .*at least 0; got -1.0"),
        ({"m2": [1.0]}, r"m2 must have shape \(2,\); got \(1,\)"),
        ({"m2": [[1.0], [1.0, 2.0]]}, "m2 must .*different lengths"),
        ({"shift": ["a", "b"]}, "shift must hold numbers"),
        ({"shift": None}, "shift must hold numbers"),
        ({"delta": [True, False]}, "delta must hold numbers"),
        ({"count": -5}, "count must be at least 0; got -5"),
        ({"count": True}, "count must be a whole number; got True"),
        ({"count": np.bool_(True)}, "count must be a whole number; got .*True"),
        ({"count": float("nan")}, "count must be a whole number; got nan"),
        ({"count": [1, -2]}, "count must be between 0 and .*; got -2"),
        ({"count": [1.5, 2.0]}, "count must hold whole numbers"),
        ({"count": [1, 2**63]}, "count must (be between|hold whole numbers)"),
        ({"count": [1, 2, 3]}, r"count must have shape \(2,\); got \(3,\)"),
        ({"count": "six"}, "count must be a whole number; got 'six'"),
        ({"ndim": -3}, "ndim must be at least 0; got -3"),
        ({"ndim": 2.0}, "ndim must be a whole number; got 2.0"),
        ({"keep": [2]}, r"keep must be ascending axes below ndim=2.*got \(2,\)"),
        ({"keep": [-1]}, "keep must be at least 0; got -1"),
        ({"keep": [0, 1]}, r"keep must be .*one for each size of \(2,\); got \(0, 1\)"),
        ({"keep": 1}, "keep must be a list of whole numbers; got 1"),
        ({"shape": [-2]}, "shape must be at least 0; got -2"),
        ({"shape": "ab"}, "shape must be a list of whole numbers; got 'ab'"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'float64'; got 'float16'"),
        ({"dtype": 4}, "dtype must be one of .*; got 4"),
        ({"labels": "{}"}, "labels must be what to_dict wrote"),
        ({"labels": '{"dims": ["a", "b"], "coords": {}}'}, r"labels must be of cells of shape \(2,\)"),
    ],
    ids=str,
)
def test_moments_of_nonsense_are_refused_by_name(change, message):
    state = kn.moments(np.arange(12.0).reshape(6, 2), 1).to_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        kn.Moments.from_dict(state | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [2, 2]}, "keep and shape must name the same number"),
        ({"mean": None}, "mean must hold the running mean; got None"),
        ({"var": [1.0]}, r"var must have shape \(2,\); got \(1,\)"),
        ({"weight": ["a", "b"]}, "weight must hold numbers"),
        ({"share": -1.0}, "share must be at least 0"),
        ({"share": "all"}, "share must hold numbers"),
        ({"updates": -1}, "updates must be at least 0; got -1"),
        ({"count": True}, "count must be a whole number; got True"),
        ({"ndim": 1, "kept": [1]}, "kept must be ascending axes below ndim=1"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"eps": -1.0}, "eps must be finite"),
        ({"decay": 2.0}, "decay must be between 0 and 1"),
        ({"debias": 3}, "debias must be True or False; got 3"),
        ({"correction": True}, "correction must be 0 .* or 1 .*got True"),
    ],
    ids=str,
)
def test_a_batch_norm_of_nonsense_is_refused_by_name(rng, change, message):
    bn = kn.BatchNorm(2, keep=1)
    bn(rng.standard_normal((5, 2)), training=True)
    with pytest.raises((TypeError, ValueError), match=message):
        kn.BatchNorm.from_dict(bn.to_dict() | change)


def test_what_is_no_state_is_refused():
    for kind in (kn.Moments, kn.BatchNorm):
        with pytest.raises(TypeError, match=r"a saved state must be a mapping.*got .*1, 2"):
            kind.from_dict([1, 2])
