"""A keyword of another library is answered with what it is called here, in every public function and class."""

import inspect
import re
from operator import attrgetter

import numpy as np
import pytest

import keepnorm as kn
from keepnorm import keywords
from keepnorm.renorm import BatchRenorm

X = np.arange(12, dtype=np.float32).reshape(4, 3)
BN = kn.BatchNorm(3, keep=1)
RENORM = BatchRenorm(3, keep=1)
SEEN = kn.moments(X, 1)
STATE = kn.dialects.dump("torch", BN)


# What one calls, and a call of it that is right but for the keywords that it is given; a value that replaces an argument
# would be another test's.
CALLS = {
    "moments": lambda **k: kn.moments(X, 1, **k),
    "affine": lambda **k: kn.affine(X, X[0], keep=1, **k),
    "normalize": lambda **k: kn.normalize(X, 1, **k),
    "normalize_vjp": lambda **k: kn.normalize_vjp(X, 1, **k),
    "denormalize": lambda **k: kn.denormalize(X, 1, moments=SEEN, **k),
    "batch_norm": lambda **k: kn.batch_norm(X, channel=1, **k),
    "instance_norm": lambda **k: kn.instance_norm(X, channel=1, **k),
    "layer_norm": lambda **k: kn.layer_norm(X, axes=-1, **k),
    "group_norm": lambda **k: kn.group_norm(X, groups=3, channel=1, **k),
    "rms_norm": lambda **k: kn.rms_norm(X, axes=-1, **k),
    "explain": lambda **k: kn.explain((4, 3), 1, **k),
    "threads": lambda **k: kn.threads(1, **k),
    "Moments.from_mean_var": lambda **k: kn.Moments.from_mean_var(X[0], X[0], keep=1, ndim=2, **k),
    "Moments.from_mean_std": lambda **k: kn.Moments.from_mean_std(X[0], abs(X[0]), keep=1, ndim=2, **k),
    "Moments.variance": lambda **k: SEEN.variance(**k),
    "Moments.deviation": lambda **k: SEEN.deviation(**k),
    "Moments.allclose": lambda **k: SEEN.allclose(SEEN, **k),
    "Accumulator": lambda **k: kn.Accumulator(1, **k),
    "Accumulator.update": lambda **k: kn.Accumulator(1).update(X, **k),
    "BatchNorm": lambda **k: kn.BatchNorm(3, keep=1, **k),
    "BatchNorm.__call__": lambda **k: BN(X, training=False, **k),
    "BatchNorm.vjp": lambda **k: BN.vjp(X, **k),
    "BatchNorm.inverse": lambda **k: BN.inverse(X, **k),
    "BatchNorm.variance": lambda **k: BN.variance(correction=1, **k),
    "BatchNorm.fold": lambda **k: BN.fold(**k),
    "renorm.BatchRenorm": lambda **k: BatchRenorm(3, keep=1, **k),
    "renorm.BatchRenorm.__call__": lambda **k: RENORM(X, training=False, **k),
    "renorm.BatchRenorm.vjp": lambda **k: RENORM.vjp(X, **k),
    "dialects.load": lambda **k: kn.dialects.load("torch", STATE, **k),
    "dialects.dump": lambda **k: kn.dialects.dump("torch", BN, **k),
    "dialects.arguments": lambda **k: kn.dialects.arguments("torch", BN, **k),
    "porting.fold_into": lambda **k: kn.porting.fold_into(np.ones((3, 3)), None, BN, keep=1, **k),
    "porting.insert": lambda **k: kn.porting.insert(X, keep=1, **k),
    "porting.parameter_count": lambda **k: kn.porting.parameter_count(3, **k),
    "sync.forward": lambda **k: kn.sync.forward(BN, X, lambda own: own, **k),
    "sync.vjp": lambda **k: kn.sync.vjp(BN, X, lambda own: own, lambda own: own, **k),
}
# Calls that lack what others need, since the keyword was meant to be it.
BARE = {
    "moments": lambda **k: kn.moments(X, **k),
    "affine": lambda **k: kn.affine(X, X[0], **k),
    "normalize": lambda **k: kn.normalize(X, **k),
    "normalize_vjp": lambda **k: kn.normalize_vjp(X, **k),
    "batch_norm": lambda **k: kn.batch_norm(X, **k),
    "instance_norm": lambda **k: kn.instance_norm(X, **k),
    "layer_norm": lambda **k: kn.layer_norm(X, **k),
    "group_norm": lambda **k: kn.group_norm(X, **k),
    "rms_norm": lambda **k: kn.rms_norm(X, **k),
    "explain": lambda **k: kn.explain((4, 3), **k),
    "threads": lambda **k: kn.threads(**k),
    "Moments.from_mean_var": lambda **k: kn.Moments.from_mean_var(X[0], X[0], **k),
    "Accumulator": lambda **k: kn.Accumulator(**k),
    "BatchNorm": lambda **k: kn.BatchNorm(3, **k),
    "BatchNorm.__call__": lambda **k: BN(X, **k),
    "BatchNorm.variance": lambda **k: BN.variance(**k),
    "renorm.BatchRenorm": lambda **k: BatchRenorm(3, **k),
    "renorm.BatchRenorm.__call__": lambda **k: RENORM(X, **k),
    "porting.fold_into": lambda **k: kn.porting.fold_into(np.ones((3, 3)), None, BN, **k),
    "porting.insert": lambda **k: kn.porting.insert(X, **k),
}
AXES = ("axis", "dim", "dims", "axes", "reduction_axes")


def takes(name):
    function = attrgetter(name)(kn)
    handed_on = [kn.BatchNorm] if name == "porting.insert" else []
    return [word for f in (function, *handed_on) for word in keywords.parameters(f)]


def called(name):
    """What errors call it."""
    return attrgetter(name)(kn).__qualname__.removesuffix(".__call__")


def refused(call, word, value):
    """What a call says of a keyword that it does not take; it is short and shows no array."""
    with pytest.raises(TypeError) as caught:
        call(**{word: value})
    text = str(caught.value)
    assert text.startswith((f"unexpected keyword {word}=", f"{word}=")), text
    assert len(text) < 600, text
    assert "array(" not in text, text
    assert "0. 0." not in text, text
    return text


@pytest.mark.parametrize("word", keywords.ROWS)
@pytest.mark.parametrize("name", CALLS)
def test_every_word_is_explained_by_every_public_function_and_class(name, word):
    taken = takes(name)
    if word in taken:
        return
    text = refused(CALLS[name], word, np.zeros((400, 300)))
    advised = re.findall(rf"(?:{called(name)} takes|Say) (\w+)=(?! to)", text)
    assert set(advised) <= set(taken)
    meant = [w for w in keywords.ROWS[word].ours.split() if w in taken]
    assert not meant or f"{meant[0]}=" in text
    if name in BARE:
        assert refused(BARE[name], word, np.zeros((400, 300))) == text


@pytest.mark.parametrize(
    ("name", "word", "ours"),
    [
        *((name, "epsilon", "eps=") for name in ("normalize", "normalize_vjp", "batch_norm", "BatchNorm", "dialects.load")),
        *((name, "gamma", "weight=") for name in ("normalize", "batch_norm", "group_norm", "layer_norm", "rms_norm")),
        *((name, "scale", "weight=") for name in ("normalize", "instance_norm")),
        *((name, "beta", "bias=") for name in ("normalize", "batch_norm")),
        *((name, "offset", "bias=") for name in ("normalize", "batch_norm")),
        ("affine", "gamma", "scale="),
        ("affine", "beta", "shift="),
        ("BatchNorm", "scale", "affine="),
        ("renorm.BatchRenorm", "scale", "affine="),
        ("group_norm", "num_groups", "groups="),
        ("normalize", "num_groups", "keepnorm.group_norm"),
        ("layer_norm", "normalized_shape", "axes="),
        ("rms_norm", "normalized_shape", "axes="),
        *((name, word, f"keepnorm.{where}") for name in ("layer_norm", "group_norm", "rms_norm") for word, where in (
            ("moments", "normalize(x, keep, moments=...)"),
            ("center", "normalize"),
        )),
        *((name, word, ".variance(correction=1)") for name in ("moments", "normalize")
          for word in ("ddof", "correction", "unbiased")),
        ("Moments.variance", "ddof", "correction="),
        ("BatchNorm", "ddof", "correction="),
        *((name, "keep", "channel=") for name in ("batch_norm", "instance_norm", "group_norm")),
        *((name, "channel", "keep=") for name in ("normalize", "moments", "BatchNorm")),
        *((name, "dtype", "dtype of x") for name in ("moments", "normalize", "layer_norm")),
        *((name, "inplace", "out=x") for name in ("normalize", "batch_norm", "moments")),
        *((name, "skipna", "nan_policy=") for name in ("moments", "normalize", "Accumulator", "layer_norm")),
        *((name, "skipna", "where=") for name in ("Accumulator.update", "BatchNorm.__call__")),
        *((name, "sample_weight", "weights=") for name in ("moments", "normalize", "layer_norm", "Accumulator.update")),
        ("normalize", "fill_value", "fill="),
        ("batch_norm", "zero_variance", "constant="),
        *((name, word, "keep=") for word in AXES for name in (
            "BatchNorm", "renorm.BatchRenorm", "Accumulator", "explain", "Moments.from_mean_var", "dialects.load",
            "porting.fold_into", "porting.insert",
        )),
        *((name, "momentum", "decay=1 - momentum") for name in (
            "BatchNorm", "renorm.BatchRenorm", "porting.insert", "normalize",
        )),
        ("dialects.load", "decay", "momentum="),
        *((name, "train", "training=") for name in ("BatchNorm.__call__", "BatchNorm.vjp", "renorm.BatchRenorm.__call__")),
        *((name, "is_training", "training=") for name in ("BatchNorm.__call__", "BatchNorm", "batch_norm")),
        ("BatchNorm.__call__", "use_running_average", "opposite"),
        ("batch_norm", "running_mean", "from_mean_var"),
    ],
)  # fmt: skip
def test_what_was_meant_is_named(name, word, ours):
    assert ours in refused(CALLS[name], word, np.zeros((400, 300)))


@pytest.mark.parametrize("name", ["moments", "normalize", "normalize_vjp", "affine", "Accumulator", "explain"])
def test_a_pattern_teaches_as_well(name):
    calls = {
        "affine": lambda **k: kn.affine(X, X[0], keep="n c -> c", **k),
        "Accumulator": lambda **k: kn.Accumulator("n c -> c", **k),
    }
    call = calls.get(name, lambda **k: getattr(kn, name)(X, "n c -> c", **k))
    assert "eps=" in refused(call, "epsilon", 1)
    assert "weight" in refused(call, "sample_weight", np.ones(3))
    assert "Say keep=" in refused(call, "axis", 1)
    assert "taken only with a pattern that names it" in refused(call, "g", 2)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("normalize", "wheer", "where="),
        ("normalize", "epsilom", "eps="),
        ("normalize", "Weight", "weight="),
        ("BatchNorm", "decey", "decay="),
        ("BatchNorm", "epss", "eps="),
        ("dialects.load", "momentun", "momentum="),
        ("explain", "afine", "affine="),
    ],
)
def test_a_misspelt_word_is_recognised(name, wrong, right):
    assert f"did you mean {right[:3]}" in refused(CALLS[name], wrong, 1)
    assert right in refused(CALLS[name], wrong, 1)


@pytest.mark.parametrize("name", CALLS)
def test_another_word_is_named_and_never_swallowed(name):
    refused(CALLS[name], "zzz", 7)
    refused(CALLS[name], "zzz", np.zeros((400, 300)))
    refused(CALLS[name], "zzz", [np.zeros(300)] * 400)


@pytest.mark.parametrize("name", BARE)
def test_what_is_missing_is_named(name):
    needed = {"threads": "n", "BatchNorm.variance": "correction"} | {
        name: "training" for name in BARE if name.endswith("__call__")
    }
    words = [needed[name]] if name in needed else ["keep", "axes", "channel", "groups"]
    with pytest.raises(TypeError, match=rf"^({'|'.join(words)})(= is missing| must be True or False; got none)"):
        BARE[name]()


def test_the_list_of_calls_is_all_that_is_public():
    # Of files, kn.stats takes options of its own: keepnorm.stats.options lists them.
    # explain_call takes no keyword.
    others = {"Gradients", "Moments", "Explanation", "stats", "explain_call"}
    public = {name for name in kn.__all__ if callable(getattr(kn, name))} - others
    modules = (kn.dialects, kn.porting, kn.sync, kn.renorm)
    for module in modules:
        short = module.__name__.removeprefix("keepnorm.")
        here = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        public |= {f"{short}.{name}" for name in here if not name.startswith("_")}
    assert public <= {*CALLS, "porting.ParameterCount"}


@pytest.mark.parametrize("name", CALLS)
def test_a_signature_says_what_is_taken(name):
    shown = inspect.signature(attrgetter(name)(kn)).parameters.values()
    assert [p.name for p in shown if p.kind is inspect.Parameter.VAR_KEYWORD] in ([], ["sizes"], ["options"], ["policies"])
    assert keywords.REQUIRED not in [p.default for p in shown]


def test_each_word_stands_once_and_each_of_ours_is_explained():
    words = [word for row in keywords._TABLE for word in row.words.split()]
    assert len(words) == len(set(words))
    assert {word for row in keywords._TABLE for word in row.ours.split()} <= set(keywords.OURS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-3, "0.001"),
        ((1, 2), "(1, 2)"),
        (None, "None"),
        (np.zeros((2, 3), np.float32), "numpy.ndarray of float32, shape (2, 3)"),
        ([np.zeros(3)] * 2, "list of length 2"),
        (tuple(range(100)), "tuple of length 100"),
        ({"a": np.zeros(3)}, "dict"),
        ("a" * 100, f"'{'a' * 76}..."),
    ],
)  # fmt: skip
def test_a_value_in_an_error(value, text):
    assert keywords.described(value) == text
