"""Random calls on every engine, against the exact reference: shapes, axes, layouts, dtypes, masks, scales and offsets.

A small number of examples runs by default; `nox -s fuzz` sets KEEPNORM_FUZZ for the long run.
"""

import os
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import keepnorm as kn
from tests import oracle, tolerance
from tests.backends import NAMES, kind
from tests.fuzz.cases import FLOATS, INTEGERS, OVERLAPPING, arrays, cases
from tests.fuzz.conftest import CALLS
from tests.fuzz.guard import POSSIBLE, guarded
from tests.layouts import LAYOUTS

LONG = "KEEPNORM_FUZZ" in os.environ
# Each dtype has kernels of its own, which the first run of a machine compiles.
DTYPES = FLOATS + INTEGERS if LONG else ("float32", "float64", "int32")
# Examples of the short run and of the long one; one example is several calls.
EXAMPLES = {
    "host": (60, 22_000),
    "guard": (15, 6_000),
    "torch": (12, 4_000),
    "autograd": (10, 2_000),
    "jax": (4, 300),
    "jax jit": (2, 100),
    "jax grad": (1, 60),
    "dask": (4, 400),
    "xarray": (6, 800),
    "array API": (15, 4_000),
}


def random(name):
    """Hypothesis's settings for one test: new examples at each long run, the same ones at each short run."""
    return settings(
        max_examples=EXAMPLES[name][LONG],
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def called(value):
    """Count one call."""
    CALLS["calls"] += 1
    return value


def result_dtype(x):
    if x.dtype.kind in "iub":
        return np.dtype("f8" if x.dtype.itemsize == 8 else "f4")
    return x.dtype


def check_moments(got, a, case, what):
    exact = oracle.moments(a.x, case.keep, a.where)
    dtype = np.float64 if a.x.dtype.itemsize == 8 else np.float32
    tolerance.assert_moments(got, exact, dtype, what)


def reference(a, case):
    """The output in float64, and the size of what it is the sum of."""
    on = case.keep if case.affine is None else case.affine
    plain = oracle.normalize(a.x, case.keep, eps=case.eps, center=case.center, where=a.where)
    y = oracle.normalize(a.x, case.keep, a.weight, a.bias, **a.options(case))
    weight, bias = (oracle.affine_view(v, on, a.x.ndim) for v in (a.weight, a.bias))
    scores = np.abs(plain) + _steps(a, case)
    size = np.abs(scores if weight is None else scores * weight) + (0 if bias is None else np.abs(bias))
    return y, np.maximum(size, 0 if weight is None else np.abs(weight))


def _steps(a, case):
    """How many deviations the float64 numbers near the values of a cell lie apart, where those are larger integers.

    Neither they nor their mean are numbers of float64 then: what the mean has lost is multiplied before it is subtracted.
    """
    if a.x.dtype.kind not in "iu" or a.x.dtype.itemsize < 8 or not case.center:
        return 0
    most = largest(a.x.astype(np.float64), case.keep)
    root = np.sqrt(oracle.moments(a.x, case.keep, a.where).var + case.eps)
    with np.errstate(divide="ignore"):
        return np.where(most > 2.0**53, np.spacing(most), 0) * np.where(root > 0, 1 / root, 0)


def check_output(got, a, case, what):
    exact, size = reference(a, case)
    assert got.dtype == result_dtype(a.x), what
    tolerance.assert_output(got, exact, a.x.size, what, size)


def largest(values, keep):
    reduced = tuple(a for a in range(values.ndim) if a not in keep)
    return np.nan_to_num(np.abs(values)).max(axis=reduced, keepdims=True, initial=0)  # a masked NaN has a gradient of NaN


def check_gradients(got, a, case, what):
    dx, dweight, dbias, terms = oracle.gradients(a.x, a.dy, case.keep, a.weight, **a.options(case))
    tolerance.assert_gradient(got[0], dx, largest(dx, case.keep), a.x.size, f"{what} dx", largest(terms, case.keep))
    for mine, exact, given_ in ((got[1], dweight, a.weight), (got[2], dbias, a.bias)):
        if given_ is not None:
            size = np.maximum(np.nan_to_num(np.abs(exact)).max(initial=0), _cancelled(a, case).max(initial=0))
            tolerance.assert_gradient(mine, exact, size, a.x.size, f"{what} parameter")


def _cancelled(a, case):
    """What a sum of dy * hat may lose by: its terms, times what mean and scale have beyond float32, four bits."""
    hat = oracle.normalize(a.x, case.keep, eps=case.eps, center=case.center, where=a.where)
    terms = np.nan_to_num(np.abs(a.dy * (np.abs(hat) + 1)), posinf=0)
    on = case.keep if case.affine is None else case.affine
    return terms.sum(axis=tuple(axis for axis in range(a.x.ndim) if axis not in on)) / 16


def same(got, y, a, case, what):
    """The same bits, which results up to float32 have whatever the layouts; float64 as near as the reference."""
    if y.dtype == np.float64:
        check_output(got, a, case, what)
    else:
        assert got.tobytes() == y.tobytes(), what


@random("host")
@given(cases(dtypes=DTYPES))
def test_numpy_arrays(case):
    a = arrays(case)
    options = a.options(case)
    before = a.stored.tobytes()
    seen = called(kn.moments(a.stored, case.keep, where=a.where))
    check_moments(seen, a, case, "moments")
    count = oracle.moments(a.x, case.keep, a.where).count
    np.testing.assert_array_equal(np.broadcast_to(seen.count, seen.mean.shape).ravel(), count.ravel())
    y = called(kn.normalize(a.stored, case.keep, a.weight, a.bias, **options))
    check_output(y, a, case, "normalize")
    again, vjp = called(kn.normalize_vjp(a.stored, case.keep, a.weight, a.bias, **options))
    same(again, y, a, case, "the output of normalize_vjp")
    check_gradients(called(vjp(a.dy)), a, case, "vjp")
    out = LAYOUTS["padded" if case.seed % 2 else "Fortran"](np.zeros(case.shape, y.dtype))
    called(kn.normalize(a.stored, case.keep, a.weight, a.bias, **options, out=out))
    same(out, y, a, case, "out=")
    same(called(kn.normalize(a.x, case.keep, a.weight, a.bias, **options)), y, a, case, "the same values in C order")
    if case.center:
        y = called(kn.normalize(a.stored, case.keep, a.weight, a.bias, **options | {"moments": seen, "where": None}))
        check_output(y, a, case, "given moments")
    assert a.stored.tobytes() == before


@pytest.mark.skipif(not POSSIBLE, reason="mprotect is POSIX")
@random("guard")
@given(cases(dtypes=DTYPES, largest=3000))
def test_nothing_is_read_or_written_beside_an_array(case):
    a = arrays(case)
    y = called(kn.normalize(a.stored, case.keep, a.weight, a.bias, **a.options(case)))
    for at_end in (False, True):
        x, dy = guarded(a.stored, at_end), guarded(a.dy, at_end)
        weight, bias = (None if v is None else guarded(v, at_end) for v in (a.weight, a.bias))
        options = a.options(case) | {"where": None if a.where is None else guarded(a.where, at_end)}
        out = guarded(LAYOUTS["Fortran" if case.seed % 2 else "C"](np.zeros(case.shape, y.dtype)), at_end)
        called(kn.normalize(x, case.keep, weight, bias, **options, out=out))
        same(out, y, a, case, "between guard pages")
        called(kn.moments(x, case.keep, where=options["where"]))
        _, vjp = called(kn.normalize_vjp(x, case.keep, weight, bias, **options))
        called(vjp(dy))


def engine_test(name, dtypes):
    """The moments, the output and the gradients of one kind of array."""
    k = kind(name)

    def make(value):
        # A labelled weight needs the names of its axes; a plain one is taken by its position.
        return value if value is None or name == "xarray" else k.make(value)

    @random(name)
    @given(cases(dtypes=dtypes, layouts=("C",), largest=200))
    def test(case):
        a = arrays(case)

        def call(x, where, *parameters):
            weight, bias = placed(parameters, a)
            seen = kn.moments(x, case.keep, where=where)
            y = kn.normalize(x, case.keep, weight, bias, **a.options(case) | {"where": where})
            return y, seen.mean, seen.var, seen.std

        parameters = [make(v) for v in (a.weight, a.bias) if v is not None]
        y, *moments = (k.read(v) for v in called(k.run(call, k.make(a.x), make(a.where), *parameters)))
        CALLS["calls"] += 1  # there were two
        check_output(y, a, case, name)
        check_moments(Seen(*moments), a, case, name)
        if k.backend.gradient == "vjp":
            options = a.options(case) | {"where": make(a.where)}
            _, vjp = called(kn.normalize_vjp(k.make(a.x), case.keep, *placed(parameters, a), **options))
            got = called(vjp(k.make(a.dy)))
            check_gradients([None if v is None else _read(k, v) for v in got], a, case, name)

    return test


def placed(parameters, a):
    """Weight and bias of those that there are."""
    left = list(parameters)
    return [None if v is None else left.pop(0) for v in (a.weight, a.bias)]


def _read(k, value):
    return value if isinstance(value, np.ndarray) else k.read(value)


class Seen(NamedTuple):
    mean: np.ndarray
    var: np.ndarray
    std: np.ndarray


@pytest.mark.parametrize("name", [name for name in NAMES if name != "numpy"])
def test_the_other_engines(name):
    dtypes = [dtype for dtype in DTYPES if dtype in kind(name).backend.dtypes]
    if name.startswith("jax"):  # which makes 32 bits of 64 unless it is told not to
        dtypes = [dtype for dtype in dtypes if not dtype.endswith("64")]
    engine_test(name, dtypes)()


@random("autograd")
@given(cases(dtypes=FLOATS, layouts=("C", "Fortran", "stepped", OVERLAPPING)))
def test_pytorch_autograd(case):
    torch = pytest.importorskip("torch")
    k = kind("torch")
    a = arrays(case)
    if case.dtype == "bfloat16":
        x = k.make(a.x)
    else:
        x = torch.as_strided(torch.from_numpy(_base(a.stored)), a.x.shape, [s // a.x.itemsize for s in a.stored.strides])
    leaves = [None if v is None else k.make(v).requires_grad_() for v in (a.weight, a.bias)]
    x = x.detach().requires_grad_()
    options = a.options(case) | {"where": None if a.where is None else torch.from_numpy(a.where)}
    y = called(kn.normalize(x, case.keep, *leaves, **options))
    check_output(k.read(y.detach()), a, case, "torch")
    y.backward(k.make(a.dy))
    CALLS["calls"] += 1
    got = [None if leaf is None else k.read(leaf.grad) for leaf in (x, *leaves)]
    check_gradients(got, a, case, "torch autograd")


def _base(x):
    """The memory of x from its first element on."""
    low = x.__array_interface__["data"][0]
    length = 1 + sum((n - 1) * s // x.itemsize for n, s in zip(x.shape, x.strides, strict=True))
    return np.lib.stride_tricks.as_strided(x, (length,), (x.itemsize,)).copy() if low else x


@random("jax grad")
@given(cases(dtypes=("float32", "bfloat16"), layouts=("C",), largest=100))
def test_jax_gradients_eager_and_traced(case):
    jax = pytest.importorskip("jax")
    a = arrays(case)
    parameters = [jax.numpy.asarray(v) for v in (a.weight, a.bias) if v is not None]
    x, dy = jax.numpy.asarray(a.x), jax.numpy.asarray(a.dy)

    def call(x, *rest):
        return kn.normalize(x, case.keep, *placed(rest, a), **a.options(case))

    def gradients(x, dy, *rest):
        y, pull = jax.vjp(call, x, *rest)
        return y, pull(dy)

    with jax.enable_x64(True):
        for run in (gradients, jax.jit(gradients)):
            y, (dx, *rest) = called(run(x, dy, *parameters))
            check_output(np.asarray(y), a, case, "jax")
            check_gradients([np.asarray(dx), *placed(map(np.asarray, rest), a)], a, case, "jax gradients")
