"""What each framework's batch norm means by its words: a table, and nothing that computes.

conformance/test_training.py and tests/test_dialects.py prove the rows by running the frameworks that are installed.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Convention:
    """One framework's batch norm.

    Attributes
    ----------
    channel : int
        The axis that it keeps unless told otherwise.
    momentum : {"old", "new"}
        Which share the word names: the old running value's (decay), or the new batch's (1 - decay).
    default_momentum : float
        In that meaning; where the framework has no default (Haiku), the paper's of most users.
    eps : float
        The default.
    correction : {0, 1}
        What the running variance subtracts from the count: 0 population, 1 sample.
    names : mapping
        Where weight, bias, mean, var and the counters are found, as paths into the state.
    arguments : mapping
        The words of the framework's own constructor for eps and momentum.
    singleton, empty : str
        What training on one value per cell and on none does; the words of `BatchNorm`.
    debias : bool
        Whether the running average is zero-debiased.
    several : bool
        Whether it can keep several axes.
    affine : {"each", "pair", "always"}
        Whether weight and bias can be absent each on its own, only both, or not at all.
    output : {"input", "promoted"}
        The dtype of the result: that of x, or promoted with the parameters'.
    """

    channel: int
    momentum: str
    default_momentum: float
    eps: float
    correction: int
    names: Mapping[str, tuple[str, ...]]
    arguments: Mapping[str, str]
    singleton: str = "zero"
    empty: str = "nan"
    debias: bool = False
    several: bool = False
    affine: str = "each"
    output: str = "input"


_KERAS = {"weight": ("gamma",), "bias": ("beta",), "mean": ("moving_mean",), "var": ("moving_variance",)}
_TORCH = {"weight": ("weight",), "bias": ("bias",), "mean": ("running_mean",), "var": ("running_var",)}
_EPSILON = {"momentum": "momentum", "eps": "epsilon"}

CONVENTIONS: Mapping[str, Convention] = {
    "keras": Convention(-1, "old", 0.99, 1e-3, 0, _KERAS, _EPSILON),
    # Rank 4 in tf.keras before Keras 3: TensorFlow's fused kernel.
    "tf_keras_fused": Convention(-1, "old", 0.99, 1e-3, 1, _KERAS, _EPSILON),
    "torch": Convention(
        1,
        "new",
        0.1,
        1e-5,
        1,
        {**_TORCH, "updates": ("num_batches_tracked",)},
        {"momentum": "momentum", "eps": "eps"},
        singleton="error",
        empty="skip",
        affine="pair",
    ),
    "flax": Convention(
        -1,
        "old",
        0.99,
        1e-5,
        0,
        {
            "weight": ("params", "scale"),
            "bias": ("params", "bias"),
            "mean": ("batch_stats", "mean"),
            "var": ("batch_stats", "var"),
        },
        _EPSILON,
        several=True,
        output="promoted",
    ),
    "flax_nnx": Convention(
        -1,
        "old",
        0.99,
        1e-5,
        0,
        {"weight": ("scale",), "bias": ("bias",), "mean": ("mean",), "var": ("var",)},
        _EPSILON,
        output="promoted",
    ),
    "haiku": Convention(
        -1,
        "old",
        0.9,
        1e-5,
        0,
        {
            "weight": ("scale",),
            "bias": ("offset",),
            "mean": ("mean_ema", "average"),
            "var": ("var_ema", "average"),
            "mean_hidden": ("mean_ema", "hidden"),
            "var_hidden": ("var_ema", "hidden"),
            "updates": ("mean_ema", "counter"),
            "var_updates": ("var_ema", "counter"),
        },
        {"momentum": "decay_rate", "eps": "eps"},
        debias=True,
        several=True,
    ),
    "onnx": Convention(
        1,
        "old",
        0.9,
        1e-5,
        0,
        {
            "weight": ("scale",),
            "bias": ("B",),
            "mean": ("input_mean",),
            "var": ("input_var",),
            "eps": ("epsilon",),
            "momentum": ("momentum",),
        },
        _EPSILON,
        affine="always",
    ),
    # From July 2026; the running variance was the population's before.
    "mlx": Convention(
        -1, "new", 0.1, 1e-5, 1, _TORCH, {"momentum": "momentum", "eps": "eps"}, singleton="error", affine="pair"
    ),
}
