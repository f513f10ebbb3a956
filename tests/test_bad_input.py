"""Every bad input is a builtin error, raised before any engine, that names the argument and says what was got."""

import inspect
import re
import warnings

import numpy as np
import pytest

import keepnorm as kn

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
W = np.ones(3, np.float32)

# Every public function of an array, with its axes given so that the rest of the call is right.
CALLS = {
    "moments": lambda x, **k: kn.moments(x, **({"keep": 1} | k)),
    "affine": lambda x, **k: kn.affine(x, **({"scale": W, "keep": 1} | k)),
    "normalize": lambda x, **k: kn.normalize(x, **({"keep": 1} | k)),
    "normalize_vjp": lambda x, **k: kn.normalize_vjp(x, **({"keep": 1} | k)),
    "batch_norm": lambda x, **k: kn.batch_norm(x, **({"channel": 1} | k)),
    "instance_norm": lambda x, **k: kn.instance_norm(x, **({"channel": 1} | k)),
    "layer_norm": lambda x, **k: kn.layer_norm(x, **({"axes": -1} | k)),
    "group_norm": lambda x, **k: kn.group_norm(x, **({"channel": 1, "groups": 3} | k)),
    "rms_norm": lambda x, **k: kn.rms_norm(x, **({"axes": -1} | k)),
}
NORMS = [name for name in CALLS if name not in ("moments", "affine")]
WITH_OUT = [name for name in CALLS if name not in ("moments", "normalize_vjp")]
AXES_WORD = {
    "layer_norm": "axes",
    "rms_norm": "axes",
    "batch_norm": "channel",
    "instance_norm": "channel",
    "group_norm": "channel",
}

NEEDED = {"layer_norm": 4, "rms_norm": 4}  # how many weights, where it is not 3


def word(name):
    return AXES_WORD.get(name, "keep")


@pytest.mark.parametrize("name", CALLS)
class TestX:
    @pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
    def test_complex(self, name, dtype):
        with pytest.raises(TypeError, match=rf"x must be real: .*; got {np.dtype(dtype).name}"):
            CALLS[name](X.astype(dtype))

    @pytest.mark.parametrize(
        "dtype", [object, "U3", "S3", "datetime64[s]", "timedelta64[s]", [("a", "f4")], "V4", np.longdouble], ids=str
    )
    def test_other_dtypes(self, name, dtype):
        wrong = np.zeros(X.shape, dtype)
        if wrong.dtype == np.float64:
            pytest.skip("long double is float64 here")
        with pytest.raises(
            TypeError, match=rf"x must hold bool, integers or floating point numbers; got {re.escape(wrong.dtype.name)}"
        ):
            CALLS[name](wrong)

    @pytest.mark.parametrize(
        "wrong", [[[1.0, 2.0], [3.0]], [[1.0, 2.0], [3.0, 4.0]], (1.0, 2.0), "abc", None, 1.0, {1.0}], ids=repr
    )
    def test_what_is_no_array(self, name, wrong):
        with pytest.raises(TypeError, match=rf"x must be an array: .*; got {type(wrong).__name__}"):
            CALLS[name](wrong)

    def test_subclasses_that_would_lose_their_meaning(self, name):
        with pytest.raises(TypeError, match=r"x is a masked array: .*where=.*; got a numpy.ma"):
            CALLS[name](np.ma.masked_array(X, X > 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            matrix = np.matrix(X[0])
        with pytest.raises(TypeError, match=r"x is a numpy.matrix, .*pass numpy.asarray\(x\); got a numpy.matrix"):
            CALLS[name](matrix)


@pytest.mark.parametrize("name", CALLS)
class TestAxes:
    @pytest.mark.parametrize("wrong", [3, -4, 17])
    def test_out_of_range(self, name, wrong):
        with pytest.raises(ValueError, match=rf"{word(name)}={wrong} does not fit x with shape \(2, 3, 4\).*; got {wrong}"):
            CALLS[name](X, **{word(name): wrong})

    @pytest.mark.parametrize("wrong", [(1, 1), (2, -1)])
    def test_twice(self, name, wrong):
        with pytest.raises(ValueError, match=rf"{word(name)} names an axis of x with shape \(2, 3, 4\) twice; got "):
            CALLS[name](X, **{word(name): wrong})

    @pytest.mark.parametrize("wrong", [1.0, True, (0, 1.0), None, object()])
    def test_no_integer(self, name, wrong):
        with pytest.raises(TypeError, match=rf"{word(name)} must .*; got "):
            CALLS[name](X, **{word(name): wrong})

    @pytest.mark.parametrize("wrong", ["axis", "dim"])
    def test_a_bare_axis_teaches_the_difference(self, name, wrong):
        with pytest.raises(TypeError, match=rf"{wrong}=1 is ambiguous: .*Say {word(name)}= with the ax[ei]s"):
            CALLS[name](X, **{wrong: 1})

    def test_a_bare_axis_in_place_of_the_axes(self, name):
        calls = {
            "affine": lambda: kn.affine(X, W, axis=1),
            "group_norm": lambda: kn.group_norm(X, groups=3, axis=1),
        }
        call = calls.get(name, lambda: getattr(kn, name)(X, axis=1))
        with pytest.raises(TypeError, match=rf"axis=1 is ambiguous: .*Say {word(name)}="):
            call()

    def test_no_axes_at_all(self, name):
        calls = {"affine": lambda: kn.affine(X, W), "group_norm": lambda: kn.group_norm(X, groups=3)}
        with pytest.raises(TypeError, match=word(name)):
            calls.get(name, lambda: getattr(kn, name)(X))()

    def test_momentum_is_a_word_of_dialects(self, name):
        with pytest.raises(TypeError, match="momentum"):
            CALLS[name](X, momentum=0.9)

    def test_an_unknown_keyword(self, name):
        with pytest.raises(TypeError, match="nonsense"):
            CALLS[name](X, nonsense=1)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("parameter", ["weight", "bias"])
class TestParameters:
    @pytest.mark.parametrize("shape", [(5,), (1, 3), (1,), (), (2, 3, 4), (0,)])
    def test_shape(self, name, parameter, shape):
        n = NEEDED.get(name, 3)
        message = (
            rf"{parameter} has shape {re.escape(str(shape))}, but the affine axes .* of x with shape \(2, 3, 4\) need \({n},\)"
        )
        with pytest.raises(ValueError, match=message):
            CALLS[name](X, **{parameter: np.ones(shape, np.float32)})

    @pytest.mark.parametrize("dtype", [np.complex64, object, "U1"])
    def test_dtype(self, name, parameter, dtype):
        with pytest.raises(TypeError, match=rf"{parameter} must hold real numbers; got {np.dtype(dtype).name}"):
            CALLS[name](X, **{parameter: np.ones(NEEDED.get(name, 3), dtype)})

    def test_a_masked_array_does_not_lose_its_mask(self, name, parameter):
        masked = np.ma.masked_array(np.ones(NEEDED.get(name, 3), np.float32), np.arange(NEEDED.get(name, 3)) == 1)
        with pytest.raises(TypeError, match=rf"{parameter} is a masked array: its mask would be lost, .*; got a numpy.ma"):
            CALLS[name](X, **{parameter: masked})

    @pytest.mark.parametrize("wrong", [[1.0, 1.0, 1.0], 1.0, "ones"])
    def test_no_array(self, name, parameter, wrong):
        with pytest.raises(TypeError, match=rf"{parameter} must be an array .*numpy; got {type(wrong).__name__}"):
            CALLS[name](X, **{parameter: wrong})


def test_affine_parameters():
    with pytest.raises(ValueError, match=r"scale has shape \(4,\), but the affine axes \(1,\) of x .* need \(3,\)"):
        kn.affine(X, np.ones(4), keep=1)
    with pytest.raises(ValueError, match=r"shift has shape \(4,\), but the affine axes \(1,\) of x .* need \(3,\)"):
        kn.affine(X, W, np.ones(4), keep=1)
    with pytest.raises(TypeError, match=r"scale must .*; got None"):
        kn.affine(X, None, W, keep=1)
    with pytest.raises(ValueError, match=r"weight has shape \(3,\), but the affine axes \(0, 2\) of x .* need \(2, 4\)"):
        kn.normalize(X, 1, W, affine=(0, 2))


def test_a_masked_array_is_nowhere_read_as_a_plain_one():
    def masked(values):
        return np.ma.masked_array(values, np.zeros(np.shape(values), bool))

    w, bn = masked(W), kn.BatchNorm(3, keep=1)
    bn.weight = w
    calls = {
        "scale": lambda: kn.affine(X, w, keep=1),
        "shift": lambda: kn.affine(X, W, w, keep=1),
        "where": lambda: kn.moments(X, 1, where=masked(X > 0)),
        "out": lambda: kn.normalize(X, 1, out=masked(np.empty_like(X))),
        "dy": lambda: kn.normalize_vjp(X, 1)[1](masked(X)),
        "mean": lambda: kn.Moments.from_mean_var(w, W, keep=1, ndim=3),
        "var": lambda: kn.Moments.from_mean_var(W, w, keep=1, ndim=3),
        "count": lambda: kn.Moments.from_mean_var(W, W, keep=1, ndim=3, count=masked(np.ones(3, int))),
        "a parameter or running moment": lambda: bn(X, training=False),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} is a masked array: its mask would be lost"):
            call()
    for call in (lambda: bn(X, training=True), lambda: bn.vjp(X), bn.fold, lambda: kn.dialects.dump("torch", bn)):
        with pytest.raises(TypeError, match="a masked array"):
            call()
    assert bn.state.updates == 0


@pytest.mark.parametrize("name", NORMS)
class TestOptions:
    @pytest.mark.parametrize("eps", [-1e-5, -1, float("nan"), float("inf"), -float("inf"), np.float32(-1.0)])
    def test_eps_value(self, name, eps):
        with pytest.raises(ValueError, match=r"eps must be finite and at least 0; got .*(\d|nan|inf)"):
            CALLS[name](X, eps=eps)

    @pytest.mark.parametrize("eps", ["1e-5", None, 1j, True, [1e-5]])
    def test_eps_type(self, name, eps):
        with pytest.raises(TypeError, match="eps must be a real number; got "):
            CALLS[name](X, eps=eps)

    def test_nothing_to_reduce(self, name):
        shape = (2, 3, 0)
        with pytest.raises(ValueError, match=r"x has nothing to take a mean of: .*; got shape \(2, 3, 0\)"):
            CALLS[name](np.zeros(shape, np.float32))


@pytest.mark.parametrize("call", [kn.normalize, kn.normalize_vjp])
class TestGeneral:
    @pytest.mark.parametrize("center", [0, 1, None, "no", np.True_])
    def test_center(self, call, center):
        with pytest.raises(TypeError, match="center must be True or False; got "):
            call(X, 1, center=center)

    @pytest.mark.parametrize("wrong", [(4,), (2, 3, 4, 1), (3, 3, 4), (2, 3, 5)])
    def test_mask_shape(self, call, wrong):
        message = rf"where must broadcast to the shape of x, \(2, 3, 4\); got shape {re.escape(str(wrong))}"
        if wrong == (4,):
            call(X, 1, where=np.ones(wrong, bool))
        else:
            with pytest.raises(ValueError, match=message):
                call(X, 1, where=np.ones(wrong, bool))
            with pytest.raises(ValueError, match=message):
                kn.moments(X, 1, where=np.ones(wrong, bool))

    @pytest.mark.parametrize("dtype", [np.float32, np.int8, object])
    def test_mask_dtype(self, call, dtype):
        for function in (call, kn.moments):
            with pytest.raises(TypeError, match=f"where must hold bool; got {np.dtype(dtype).name}"):
                function(X, 1, where=np.ones(X.shape, dtype))

    def test_a_mask_that_is_no_array(self, call):
        with pytest.raises(TypeError, match=r"where must be an array .*; got list"):
            call(X, 1, where=[True] * 4)

    def test_moments_of_other_cells(self, call):
        with pytest.raises(ValueError, match=r"moments have shape \(4,\), but the kept axes \(1,\) of x .* need \(3,\)"):
            call(X, 1, moments=kn.moments(X, 2))
        square = np.ones((3, 3), np.float32)
        with pytest.raises(ValueError, match=r"moments .*keep.*\(0,\).*\(1,\)|moments .*\(1,\).*\(0,\)"):
            call(square, 1, moments=kn.moments(square, 0))

    @pytest.mark.parametrize("wrong", [(np.zeros(3), np.ones(3)), np.zeros(3), "running"])
    def test_moments_that_are_none(self, call, wrong):
        with pytest.raises(TypeError, match=f"moments must be keepnorm.Moments.*; got {type(wrong).__name__}"):
            call(X, 1, moments=wrong)


@pytest.mark.parametrize("name", WITH_OUT)
class TestOut:
    @pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.complex64])
    def test_dtype(self, name, dtype):
        with pytest.raises(TypeError, match=f"out must have dtype float32, .*; got {np.dtype(dtype).name}"):
            CALLS[name](X, out=np.empty(X.shape, dtype))

    @pytest.mark.parametrize("shape", [(2, 3), (24,), (4, 3, 2), (2, 3, 4, 1), (0,)])
    def test_shape(self, name, shape):
        with pytest.raises(ValueError, match=rf"out must have the shape of x, \(2, 3, 4\); got {re.escape(str(shape))}"):
            CALLS[name](X, out=np.empty(shape, np.float32))

    def test_read_only(self, name):
        out = np.empty_like(X)
        out.flags.writeable = False
        with pytest.raises(ValueError, match=r"out must be writable; got a read-only array of shape \(2, 3, 4\)"):
            CALLS[name](X, out=out)
        assert not out.flags.writeable

    def test_read_only_because_broadcast(self, name):
        with pytest.raises(ValueError, match="out must be writable"):
            CALLS[name](X, out=np.broadcast_to(np.zeros(4, np.float32), X.shape))

    def test_places_that_are_one_place(self, name):
        """A writable array in which several elements share their memory cannot hold a result."""
        shared = np.lib.stride_tricks.as_strided(np.zeros(12, np.float32), X.shape, (0, 16, 4))
        with pytest.raises(ValueError, match=r"out must .*; got "):
            CALLS[name](X, out=shared)

    def test_places_that_overlap_without_a_step_of_zero(self, name):
        shared = np.lib.stride_tricks.as_strided(np.zeros(24, np.float32), X.shape, (16, 8, 4))
        with pytest.raises(
            ValueError, match=r"out must have a place of its own for every value; got the strides \(16, 8, 4\)"
        ):
            CALLS[name](X, out=shared)

    @pytest.mark.parametrize("wrong", [[[0.0]], (np.empty_like(X),), "out", True])
    def test_no_array(self, name, wrong):
        with pytest.raises(TypeError, match=f"out must be an array .*; got {type(wrong).__name__}"):
            CALLS[name](X, out=wrong)


class TestGroups:
    @pytest.mark.parametrize("groups", [2, 0, -1, 4])
    def test_that_do_not_divide(self, groups):
        with pytest.raises(ValueError, match=rf"groups={groups} does not divide the 3 channels on axis 1 of x"):
            kn.group_norm(X, groups=groups, channel=1)

    @pytest.mark.parametrize("groups", [1.0, True, None, "3"])
    def test_that_are_no_number(self, groups):
        with pytest.raises(TypeError, match="groups must be an int; got "):
            kn.group_norm(X, groups=groups, channel=1)

    def test_several_channel_axes(self):
        with pytest.raises(ValueError, match=r"channel must be one axis.*; got \(1, 2\)"):
            kn.group_norm(X, groups=3, channel=(1, 2))

    @pytest.mark.parametrize("norm", [kn.instance_norm, lambda x, **k: kn.group_norm(x, groups=1, **k)])
    def test_the_batch_axis_is_no_channel(self, norm):
        with pytest.raises(ValueError, match=r"channel and batch must be different axes .*; got -3 and 0"):
            norm(X, channel=-3)


class TestEmpty:
    def test_moments_of_nothing_are_nan_without_a_warning(self):
        for keep, shape in ((0, (2,)), (1, (3,)), ((0, 1), (2, 3)), ((), ())):
            got = kn.moments(np.zeros((2, 3, 0), np.float32), keep)
            assert got.count == 0
            for value in (got.mean, got.var, got.std, got.variance(correction=1)):
                assert value.shape == shape
                assert value.dtype == np.float32
                assert np.isnan(value).all()

    def test_an_empty_kept_axis_gives_an_empty_result(self):
        empty = np.zeros((2, 0, 4), np.float32)
        for keep in (1, (0, 1), (1, 2), (0, 1, 2)):
            assert kn.normalize(empty, keep).shape == empty.shape
            assert kn.normalize(empty, keep).dtype == np.float32
        assert kn.batch_norm(empty, np.ones(0, np.float32), channel=1).shape == empty.shape
        assert kn.affine(empty, np.ones(0, np.float32), keep=1).shape == empty.shape
        _, vjp = kn.normalize_vjp(empty, 1, np.ones(0, np.float32))
        assert vjp(empty).x.shape == empty.shape
        assert vjp(empty).weight.shape == (0,)

    def test_given_moments_need_nothing_to_reduce(self):
        given = kn.Moments.from_mean_var(np.zeros(3), np.ones(3), keep=1, ndim=3)
        assert kn.normalize(np.zeros((2, 3, 0), np.float32), 1, moments=given).shape == (2, 3, 0)

    def test_one_value_per_cell_gives_the_bias(self):
        bias = np.array([1.0, -2.0, 3.0], np.float32)
        x = X[:1, :, :1]
        np.testing.assert_array_equal(kn.normalize(x, 1, bias=bias).ravel(), bias)
        np.testing.assert_array_equal(kn.normalize(X, (0, 1, 2)), np.zeros_like(X))

    @pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 0, 4)])
    def test_an_empty_result_has_an_output(self, shape):
        x = np.zeros(shape, np.float32)
        given = kn.Moments.from_mean_var(np.zeros(shape[1]), np.ones(shape[1]), keep=1, ndim=3)
        for out in (np.empty_like(x), np.empty(shape[::-1], np.float32).T):
            assert kn.batch_norm(x, channel=1, moments=given, out=out) is out
            assert kn.affine(x, np.ones(shape[1]), keep=1, out=out) is out

    def test_an_array_of_no_axes(self):
        x = np.array(3.0, np.float32)
        with pytest.raises(ValueError, match=r"keep must be \(\), as x has no axes; got 0"):
            kn.moments(x, 0)
        assert kn.moments(x, ()).mean == 3
        assert kn.normalize(x, ()).shape == ()
        assert kn.normalize(x, ()) == 0


@pytest.mark.parametrize("dy", [np.ones((2, 3)), np.ones((4, 3, 2)), np.ones(())])
def test_a_cotangent_of_another_shape(dy):
    _, vjp = kn.normalize_vjp(X, 1)
    with pytest.raises(ValueError, match=rf"dy must have the shape of .*\(2, 3, 4\); got {re.escape(str(dy.shape))}"):
        vjp(dy)


@pytest.mark.parametrize("dy", [[1.0], None, np.ones(X.shape, np.complex64)])
def test_a_cotangent_that_is_none(dy):
    _, vjp = kn.normalize_vjp(X, 1)
    with pytest.raises(TypeError, match=r"dy must .*; got "):
        vjp(dy)


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError), (None, TypeError)]
)
def test_a_number_of_threads(n, error):
    with pytest.raises(error, match=r"n must .*; got "), kn.threads(n):
        pass


@pytest.mark.parametrize("name", ["moments", "normalize"])
def test_an_error_comes_before_any_engine(run_python, name):
    run_python(
        "import sys, numpy as np, keepnorm as kn\n"
        f"try: kn.{name}(np.ones((2, 3)), 5)\n"
        "except ValueError: pass\n"
        "else: sys.exit('no error')\n"
        "sys.exit('numba' in sys.modules)"
    )


BIG = {
    "array": np.zeros((400, 300)),
    "whole numbers": np.arange(10**5),
    "list of arrays": [np.zeros(300)] * 400,
    "long list": list(range(10**5)),
    "long string": "a" * 10**5,
}


@pytest.mark.parametrize("what", BIG)
@pytest.mark.parametrize("name", CALLS)
def test_no_error_prints_an_array(name, what):
    for parameter in inspect.signature(getattr(kn, name)).parameters:
        if parameter not in ("x", "sizes", "unknown"):
            with pytest.raises((TypeError, ValueError)) as caught:
                CALLS[name](X, **{parameter: BIG[what]})
            assert len(str(caught.value)) < 600, parameter
            assert "array(" not in str(caught.value), parameter
    if not isinstance(BIG[what], np.ndarray):
        with pytest.raises(TypeError) as caught:
            CALLS[name](BIG[what])
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: kn.layer_norm(x, w, axes=(2, 1)),
        lambda x, w: kn.rms_norm(x, bias=w, axes=(-1, 1)),
        lambda x, w: kn.normalize(x, (2, 1), w),
        lambda x, w: kn.normalize_vjp(x, 0, w, affine=(2, -2)),
        lambda x, w: kn.normalize(x, "b t d -> b", w, affine="d t"),
        lambda x, w: kn.batch_norm(x, w, channel=(2, 1)),
        lambda x, w: kn.affine(x, w, keep=(2, 1)),
        lambda _, w: kn.Moments.from_mean_var(w, w, keep=(2, 1), ndim=3),
        lambda *_: kn.BatchNorm((4, 4), keep=(2, 1)),
        lambda x, _: kn.BatchNorm((4, 4), keep=(-1, 1))(x, training=False),
    ],
)
def test_a_square_weight_is_never_read_transposed(call):
    with pytest.raises(ValueError, match=r"in the order of x: say them in that order, \(1, 2\), .*; got the axes \(2, 1\)"):
        call(np.ones((2, 4, 4), np.float32), np.arange(16, dtype=np.float32).reshape(4, 4))
