"""The public names, as type checkers see them: what must be said, and which array comes back.

A test holds the parameters equal to those of the functions themselves.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, SupportsIndex, TypeVar, overload

from keepnorm import dialects as dialects
from keepnorm import porting as porting
from keepnorm import renorm as renorm
from keepnorm import sync as sync
from keepnorm.accumulator import Accumulator as Accumulator
from keepnorm.batchnorm import BatchNorm as BatchNorm
from keepnorm.explain.calls import explain_call as explain_call
from keepnorm.explain.explanation import Explanation as Explanation
from keepnorm.explain.explanation import explain as explain
from keepnorm.gradients import Gradients as Gradients
from keepnorm.kernels.jit.threads import threads as threads
from keepnorm.moments import Moments as Moments
from keepnorm.stats.dataset import stats as stats

__version__: str

class _Array(Protocol):
    """What every array has: NumPy's, PyTorch's, JAX's, dask's, CuPy's, xarray's and those of the array API."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...

_A = TypeVar("_A", bound=_Array)
_Axes = SupportsIndex | Sequence[SupportsIndex]
_Names = str | tuple[str, ...]
_NanPolicy = Literal["propagate", "omit", "raise"]
_Constant = Literal["bias", "center", "nan", "error"]
_Fill = float | Literal["input"] | None

@overload
def moments(
    x: _Array,
    /,
    keep: _Axes,
    *,
    where: _Array | None = None,
    nan_policy: _NanPolicy = "propagate",
    weights: _Array | None = None,
) -> Moments: ...
@overload
def moments(
    x: _Array,
    /,
    keep: _Names,
    *,
    where: _Array | None = None,
    nan_policy: _NanPolicy = "propagate",
    weights: _Array | None = None,
    **sizes: int,
) -> Moments: ...
@overload
def affine(x: _A, /, scale: _Array, shift: _Array | None = None, *, keep: _Axes, out: _A | None = None) -> _A: ...
@overload
def affine(
    x: _A, /, scale: _Array, shift: _Array | None = None, *, keep: _Names, out: _A | None = None, **sizes: int
) -> _A: ...
@overload
def normalize(
    x: _A,
    /,
    keep: _Axes,
    weight: _Array | None = None,
    bias: _Array | None = None,
    *,
    affine: _Axes | None = None,
    eps: float = 1e-5,
    center: bool = True,
    moments: Moments | None = None,
    where: _Array | None = None,
    nan_policy: _NanPolicy = "propagate",
    weights: _Array | None = None,
    constant: _Constant = "bias",
    fill: _Fill = None,
    out: _A | None = None,
) -> _A: ...
@overload
def normalize(
    x: _A,
    /,
    keep: _Names,
    weight: _Array | None = None,
    bias: _Array | None = None,
    *,
    affine: _Axes | _Names | None = None,
    eps: float = 1e-5,
    center: bool = True,
    moments: Moments | None = None,
    where: _Array | None = None,
    nan_policy: _NanPolicy = "propagate",
    weights: _Array | None = None,
    constant: _Constant = "bias",
    fill: _Fill = None,
    out: _A | None = None,
    **sizes: int,
) -> _A: ...
@overload
def normalize_vjp(
    x: _A,
    /,
    keep: _Axes,
    weight: _Array | None = None,
    bias: _Array | None = None,
    *,
    affine: _Axes | None = None,
    eps: float = 1e-5,
    center: bool = True,
    moments: Moments | None = None,
    where: _Array | None = None,
    nan_policy: _NanPolicy = "propagate",
    weights: _Array | None = None,
    constant: _Constant = "bias",
    fill: _Fill = None,
) -> tuple[_A, Callable[[_A], Gradients]]: ...
@overload
def normalize_vjp(
    x: _A,
    /,
    keep: _Names,
    weight: _Array | None = None,
    bias: _Array | None = None,
    *,
    affine: _Axes | _Names | None = None,
    eps: float = 1e-5,
    center: bool = True,
    moments: Moments | None = None,
    where: _Array | None = None,
    nan_policy: _NanPolicy = "propagate",
    weights: _Array | None = None,
    constant: _Constant = "bias",
    fill: _Fill = None,
    **sizes: int,
) -> tuple[_A, Callable[[_A], Gradients]]: ...
@overload
def denormalize(
    y: _A,
    /,
    keep: _Axes,
    weight: _Array | None = None,
    bias: _Array | None = None,
    *,
    affine: _Axes | None = None,
    eps: float = 1e-5,
    moments: Moments,
) -> _A: ...
@overload
def denormalize(
    y: _A,
    /,
    keep: _Names,
    weight: _Array | None = None,
    bias: _Array | None = None,
    *,
    affine: _Axes | _Names | None = None,
    eps: float = 1e-5,
    moments: Moments,
    **sizes: int,
) -> _A: ...
def batch_norm(
    x: _A,
    /,
    weight: _Array | None = None,
    bias: _Array | None = None,
    *,
    channel: _Axes | _Names,
    eps: float = 1e-5,
    moments: Moments | None = None,
    where: _Array | None = None,
    nan_policy: _NanPolicy = "propagate",
    weights: _Array | None = None,
    constant: _Constant = "bias",
    fill: _Fill = None,
    out: _A | None = None,
) -> _A: ...
def instance_norm(
    x: _A,
    /,
    weight: _Array | None = None,
    bias: _Array | None = None,
    *,
    channel: _Axes | _Names,
    batch: _Axes | _Names = 0,
    eps: float = 1e-5,
    where: _Array | None = None,
    nan_policy: _NanPolicy = "propagate",
    weights: _Array | None = None,
    fill: _Fill = None,
    out: _A | None = None,
) -> _A: ...
def layer_norm(
    x: _A,
    /,
    weight: _Array | None = None,
    bias: _Array | None = None,
    *,
    axes: _Axes | _Names,
    eps: float = 1e-5,
    where: _Array | None = None,
    nan_policy: _NanPolicy = "propagate",
    weights: _Array | None = None,
    fill: _Fill = None,
    out: _A | None = None,
) -> _A: ...
def group_norm(
    x: _A,
    /,
    weight: _Array | None = None,
    bias: _Array | None = None,
    *,
    groups: int,
    channel: int | str,
    batch: _Axes | _Names = 0,
    eps: float = 1e-5,
    where: _Array | None = None,
    nan_policy: _NanPolicy = "propagate",
    weights: _Array | None = None,
    fill: _Fill = None,
    out: _A | None = None,
) -> _A: ...
def rms_norm(
    x: _A,
    /,
    weight: _Array | None = None,
    bias: _Array | None = None,
    *,
    axes: _Axes | _Names,
    eps: float = 1e-5,
    where: _Array | None = None,
    nan_policy: _NanPolicy = "propagate",
    weights: _Array | None = None,
    fill: _Fill = None,
    out: _A | None = None,
) -> _A: ...
