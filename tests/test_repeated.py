"""What is kept of one call serves the next: the same answer for whatever arrays come, of the same shape."""

import gc
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import keepnorm as kn
from keepnorm import validate
from keepnorm.engines.host import engine as host
from keepnorm.engines.host import fast_path, memory
from keepnorm.kernels.jit.threads import layer

SHAPE = (6, 20, 8)
HALVES = [np.float16, ml_dtypes.bfloat16]
CALLS = {
    "normalize": lambda x, w, b: kn.normalize(x, 1, w, b),
    "batch_norm": lambda x, w, b: kn.batch_norm(x, w, b, channel=1),
    "instance_norm": lambda x, w, b: kn.instance_norm(x, w, b, channel=1),
    "rms_norm": lambda x, w, b: kn.rms_norm(x, w, b, axes=1),
    "layer_norm": lambda x, w, b: kn.layer_norm(x, w, b, axes=1),
}


def arrays(dtype=np.float32):
    """x, weight and bias, in a narrow float and C order: the usual call."""
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, SHAPE).astype(dtype)
    return x, rng.normal(1, 0.1, 20).astype(dtype), rng.normal(0, 0.1, 20).astype(dtype)


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def unaligned(a):
    memory = np.zeros(a.nbytes + 1, np.uint8)
    there = memory[1:].view(a.dtype).reshape(a.shape)
    there[...] = a
    return there


OTHERS = {
    "the same": lambda a: a,
    "F order": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "read-only": read_only,
    "unaligned": unaligned,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "float64": lambda a: a.astype(np.float64),
}


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("dtype", [np.float32, *HALVES], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", CALLS)
def test_other_arrays_after_the_usual_ones(name, dtype, given):
    call = CALLS[name]
    x, w, b = arrays(dtype)
    w, b = (a if said else None for a, said in zip((w, b), given, strict=True))
    expected = call(x, w, b)
    atol = 1e-6 if dtype is np.float32 else 4 * float(np.finfo(dtype).eps if dtype is np.float16 else 2.0**-7)
    others = {**OTHERS, "float32": lambda a: a.astype(np.float32)}
    if dtype not in (np.float32, np.float16):
        del others["byte-swapped"]  # ml_dtypes has none
    for other in others.values():
        for y in (call(other(x), w, b), call(x, *(None if a is None else other(a) for a in (w, b))), call(x, w, b)):
            np.testing.assert_allclose(np.asarray(y, np.float64), np.asarray(expected, np.float64), rtol=0, atol=atol)
    assert call(x, w, b).tobytes() == expected.tobytes()
    if given != (False, False):
        singles = (None if a is None else a.astype(np.float32) for a in (w, b))
        assert call(x, *singles).tobytes() == expected.tobytes(), "a half as a float32 is the same number"
    assert call(-x, w, b).tobytes() != expected.tobytes()


def outputs(x, w, b):
    """Arrays to write to: apart from what is given, x itself, beside x in one memory, shifted, and the weight's memory."""
    beside = np.zeros((2, *x.shape), np.float32)
    beside[0] = x
    shifted = np.zeros(x.size + 8, np.float32)
    shifted[: x.size] = x.ravel()
    around = np.zeros(x.size, np.float32)
    around[40:60] = w
    inside = x.copy()
    yield "apart", x, w, b, np.empty_like(x)
    yield "x itself", inside, w, b, inside
    yield "a view of x", (same := x.copy()), w, b, same[:]
    yield "beside x", beside[0], w, b, beside[1]
    yield "over x", shifted[: x.size].reshape(x.shape), w, b, shifted[8:].reshape(x.shape)
    yield "over the weight", x, around[40:60], b, around.reshape(x.shape)
    yield "over the bias", x, w, around[40:60], around.reshape(x.shape)
    for name, other in OTHERS.items():
        if name not in ("read-only", "float64"):
            yield name, x, w, b, other(x)


@pytest.mark.parametrize("place", range(13))
def test_other_outputs_after_the_usual_one(place):
    x, w, b = arrays()
    kn.normalize(x, 1, w, b, out=np.empty_like(x))
    name, x, w, b, out = next(given for i, given in enumerate(outputs(x, w, b)) if i == place)
    expected = kn.normalize(x.copy(), 1, w.copy(), b.copy())
    assert kn.normalize(x, 1, w, b, out=out) is out, name
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6, err_msg=name)
    if out.dtype.isnative and name not in ("F order", "strided", "backwards"):
        assert out.tobytes() == expected.tobytes(), name


@pytest.fixture
def served(monkeypatch):
    """Nothing is kept before; for each call that finds what was kept: whether that has served it."""
    monkeypatch.setattr(host, "_READY", {})
    monkeypatch.setattr(validate, "_CALLS", {})
    prepare, calls = host.prepare, []

    def counted(*arguments):
        run = prepare(*arguments)

        def fast_path(*given):
            y = run(*given)
            calls.append(y is not None)
            return y

        return fast_path

    monkeypatch.setattr(host, "prepare", counted)
    return calls


def test_calls_at_once_do_not_share_what_is_kept():
    """The same shape, other values, in several threads: each finds its own moments."""
    arrays = [np.random.default_rng(n).normal(n, 1 + n, (3, 200_000)).astype(np.float32) for n in range(4)]
    expected = [kn.normalize(x, 0).tobytes() for x in arrays]
    with ThreadPoolExecutor(len(arrays)) as pool:
        for found in zip(*pool.map(lambda x: [kn.normalize(x, 0).tobytes() for _ in range(20)], arrays), strict=True):
            assert list(found) == expected


def test_a_call_with_an_output_is_kept_too(served):
    x, w, b = arrays()
    kn.normalize(x, 1, w, b, out=np.empty_like(x))
    kn.normalize(x, 1, w, b, out=np.empty_like(x))
    kn.normalize(x, 1, w, b, out=x)
    assert served == [True, True]
    kn.normalize(x, 1, w, b, out=x[:])
    assert not served[2], "memory that is shared takes the longer way"


@pytest.mark.parametrize(
    ("shape", "keep"),
    [((600, 1100), 1), ((9000, 40), 1), ((8, 3, 5000), 1), ((3, 200000), 0)],
    ids=["wide rows", "rows", "runs", "long runs"],
)
def test_calls_of_several_stages_are_kept_too_for_any_number_of_threads(shape, keep, served):
    x, other = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    w, b = np.random.default_rng(1).standard_normal((2, shape[keep])).astype(np.float32)
    with kn.threads(1):
        expected = kn.normalize(x, keep, w, b)
    for n in (2, 1, 3, 2):
        with kn.threads(n):
            assert kn.normalize(x, keep, w, b).tobytes() == expected.tobytes()
            assert kn.normalize(other, keep, w, b).tobytes() != expected.tobytes()
    inside = x.copy()
    assert kn.normalize(inside, keep, w, b, out=inside).tobytes() == expected.tobytes()
    assert served
    assert all(served) or layer() != "GNU OpenMP"


@pytest.mark.parametrize("given", [True, False])
def test_calls_of_halves_are_kept_too_each_dtype_apart(given, served):
    for n, dtype in enumerate((np.float32, *HALVES), 1):
        x, w, b = arrays(dtype)
        w, b = (w, b) if given else (None, None)
        expected = kn.normalize(x, 1, w, b)
        assert len(host._READY) == n
        assert not served
        again = kn.normalize(x, 1, w, b)
        out = kn.normalize(x, 1, w, b, out=np.empty_like(x))
        assert served == [True, True]
        assert again.dtype == out.dtype == x.dtype
        assert again.tobytes() == out.tobytes() == expected.tobytes()
        served.clear()


def test_parameters_and_arrays_of_a_call_are_not_kept(served):
    x, w, b = arrays()
    for _ in range(2):
        y = kn.normalize(x, 1, w, b)
    assert len(host._READY) == 1
    assert served == [True]
    marks = [weakref.ref(a) for a in (x, w, b, y)]
    del x, w, b, y
    gc.collect()
    assert [mark() for mark in marks] == [None] * 4


@pytest.mark.parametrize(("module", "table", "most"), [(host, "_READY", "_MOST_READY"), (validate, "_CALLS", "_MOST_CALLS")])
def test_what_is_kept_has_a_bound_and_the_oldest_goes_first(module, table, most, monkeypatch):
    monkeypatch.setattr(module, most, 3)
    monkeypatch.setattr(module, table, {})
    kept = []
    for n in range(5, 15):
        kn.normalize(np.ones((4, n), np.float32), 1)
        entries = list(getattr(module, table))
        kept = [*kept, *(entry for entry in entries if entry not in kept)]
        assert entries == kept[-3:]
    assert len(kept) == 10


def grown(call, sizes):
    """The memory that is still held after calls of many sizes, three of each: NumPy's arrays are a part of it."""
    call(sizes[0])
    gc.collect()
    tracemalloc.start()
    try:
        for size in sizes[1:]:
            for _ in range(3):
                call(size)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


OF_A_SHAPE = 16 << 10  # bytes that a shape may keep: its axes, its plan, and the calls that are ready


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True), (False, False)])
def test_a_shape_keeps_no_parameters(given):
    def call(height):
        shape = (3, height, 90)
        w, b = (np.ones(shape, np.float32) if is_given else None for is_given in given)
        kn.layer_norm(np.ones((1, *shape), np.float32), w, b, axes=(1, 2, 3))

    sizes = range(100, 180)
    shared = 0 if all(given) else 2 * 4 * 3 * 180 * 90 * 2  # one array for all of them, which grows by doubling
    assert grown(call, sizes) <= len(sizes) * OF_A_SHAPE + shared


def test_a_shape_keeps_no_states_of_its_cells():
    """Those of up to 1024 cells are kept for the next call of any shape."""
    sizes = range(600, 900, 3)
    assert grown(lambda cells: kn.layer_norm(np.ones((cells, 16), np.float32), axes=1), sizes) <= len(sizes) * OF_A_SHAPE


@pytest.mark.parametrize("cells", [1, 2, 7, 8, 9, 512, 513, 1024, 1025, 3000])
def test_states_that_are_kept_have_room_for_every_cell(cells, served):
    x, other = np.random.default_rng(0).standard_normal((2, cells, 24)).astype(np.float32)
    expected = kn.normalize(x, 0)
    for _ in range(2):
        kn.normalize(other, 0)
        assert kn.normalize(x, 0).tobytes() == expected.tobytes()
    assert all(served)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_parameters_beyond_the_shared_ones_are_made_for_each_call(name, served, monkeypatch):
    monkeypatch.setattr(memory, "SHARED", 12)
    monkeypatch.setattr(fast_path, "SHARED", 12)
    monkeypatch.setattr(memory, "_beginnings", dict(memory._beginnings) | {1.0: memory.UNIT[0], 0.0: memory.UNIT[1]})
    test_a_missing_parameter_is_remembered_as_ones_or_zeros(name, served)
    assert [a.size for a in memory._beginnings.values()] == [1, 1]


def test_ones_and_zeros_that_calls_share_cannot_be_written():
    for make, value in ((memory.ones, 1), (memory.zeros, 0)):
        for n in (3, 1, 70, 5):
            values = make(n)
            assert values.tolist() == [value] * n
            assert n == 1 or not values.flags.writeable


def test_parameters_of_grouped_channels_are_served_in_the_shape_of_the_channels(served):
    x = np.random.default_rng(0).standard_normal((4, 20, 8)).astype(np.float32)
    w, b = np.random.default_rng(1).standard_normal((2, 20)).astype(np.float32)
    first, second = (kn.group_norm(x, w, b, groups=5, channel=1) for _ in range(2))
    assert served == [True]
    assert first.tobytes() == second.tobytes()


def test_tensors_are_served_too(served):
    torch = pytest.importorskip("torch")
    x, w, b = map(torch.from_numpy, arrays())
    first, second = (kn.batch_norm(x, w, b, channel=1) for _ in range(2))
    assert served == [True]
    assert torch.equal(first, second)


@pytest.mark.parametrize("word", [True, 1.0, np.bool_(True), "1"], ids=repr)
def test_what_only_equals_an_axis_is_no_axis_either_when_the_call_is_known(word, served):
    x, w, b = arrays()
    kn.normalize(x, 1, w, b)
    with pytest.raises((TypeError, ValueError)):
        kn.normalize(x, word, w, b)
    with pytest.raises((TypeError, ValueError)):
        kn.normalize(x, (0, word), w, b)
    assert not served


class Weights(np.ndarray):
    """A subclass that may mean something else."""


WRONG = {
    "a weight of a subclass": lambda x, w, b: kn.normalize(x, 1, w.view(Weights), b),
    "a weight too short": lambda x, w, b: kn.normalize(x, 1, w[:-1].copy(), b),
    "a bias of another shape": lambda x, w, b: kn.normalize(x, 1, w, b[:, None].copy()),
    "a list": lambda x, w, b: kn.normalize(x, 1, w, b.tolist()),
    "complex numbers": lambda x, w, b: kn.normalize(x, 1, w + 0j, b),
    "a negative eps": lambda x, w, b: kn.normalize(x, 1, w, b, eps=-1.0),
    "no number as eps": lambda x, w, b: kn.normalize(x, 1, w, b, eps=float("nan")),
    "an endless eps": lambda x, w, b: kn.normalize(x, 1, w, b, eps=float("inf")),
    "a flag as eps": lambda x, w, b: kn.normalize(x, 1, w, b, eps=True),
    "a number as a flag": lambda x, w, b: kn.normalize(x, 1, w, b, center=1),
    "an output too small": lambda x, w, b: kn.normalize(x, 1, w, b, out=np.empty_like(x[:-1])),
    "an output of another dtype": lambda x, w, b: kn.normalize(x, 1, w, b, out=x.astype(np.float64)),
    "an output that is read-only": lambda x, w, b: kn.normalize(x, 1, w, b, out=read_only(x)),
    "a keyword that is none": lambda x, w, b: kn.normalize(x, 1, w, b, axis=0),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_come_before_what_is_kept(name, served):
    x, w, b = arrays()
    kn.normalize(x, 1, w, b)
    kn.normalize(x, 1, w, b)
    assert served == [True]
    with pytest.raises((TypeError, ValueError)):
        WRONG[name](x, w, b)
    assert True not in served[1:]


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, b: kn.normalize(x, 1, w, b, where=np.ones(x.shape, bool)),
        lambda x, w, b: kn.normalize(x, 1, w, b, moments=kn.moments(x, 1)),
        lambda x, w, b: kn.normalize(x, 1, w.astype(np.float64), b),
    ],
)
def test_rare_arguments_take_the_longer_way(call, served):
    x, w, b = arrays()
    kn.normalize(x, 1, w, b)
    expected = call(x.astype(np.float64), w, b)
    np.testing.assert_allclose(call(x, w, b), expected, rtol=0, atol=1e-5)
    assert True not in served


def test_arrays_that_are_read_only_are_served_and_remembered(served):
    """Those of JAX are."""
    given = tuple(map(read_only, arrays()))
    first, second = (kn.normalize(given[0], 1, *given[1:]) for _ in range(2))
    assert served == [True]
    assert first.tobytes() == second.tobytes() == kn.normalize(given[0].copy(), 1, *(a.copy() for a in given[1:])).tobytes()
    out = read_only(given[0])
    with pytest.raises(ValueError, match="out"):
        kn.normalize(given[0], 1, *given[1:], out=out)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_missing_parameter_is_remembered_as_ones_or_zeros(name, served):
    x, w, b = arrays()
    given = {name: w if name == "weight" else b}
    first, second = (kn.normalize(x, 1, **given) for _ in range(2))
    assert served == [True]
    assert first.tobytes() == second.tobytes()
    whole = kn.normalize(x, 1, given.get("weight", np.ones_like(w)), given.get("bias", np.zeros_like(b)))
    assert first.tobytes() == whole.tobytes()
