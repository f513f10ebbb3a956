"""What every call on a CUDA device begins and ends with: one device, memory that kernels can walk, results, parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from keepnorm.dispatch import dtype_name
from keepnorm.engines.cuda_memory import ALIGNMENT, Library, is_contiguous, library_of, span
from keepnorm.engines.cuda_walk import Device, check_process, mark_used
from keepnorm.moments import Moments
from keepnorm.precision import FLOATING, result_name
from keepnorm.transfer import like

Array = Any


class Session(NamedTuple):
    """The library and the device of a call, the stream that it runs on, and the bytes of the device's L2 cache."""

    library: Library
    device: Device
    cache: int


@contextmanager
def opened(x: Array, *others: Array | None) -> Iterator[Session]:
    """Make the device of x the current one for a call whose arrays must all lie there.

    Raises
    ------
    ValueError
        If an array lies on another device.
    RuntimeError
        If there is no driver, or one too old for the compiled kernels; if the process was forked with CUDA in use.
    """
    check_process()
    library = library_of(x)
    number = library.device_of(x)
    for other in others:
        if other is not None and (library_of(other) is not library or library.device_of(other) != number):
            raise ValueError(
                f"x and what goes with it must be on one device; got {library.name} device {number} and "
                f"{library_of(other).name} device {library_of(other).device_of(other)}"
            )
    with library.inside(x), explained():
        yield Session(library, Device(library, x, number, library.stream(number)), library.cache(number))
    mark_used()


class explained:  # noqa: N801
    """Say what to do about an error of the driver or of the compiler's tools."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        text = None if error is None else reason(error)
        if text is not None:
            raise RuntimeError(f"{text}; got {type(error).__name__}: {error}") from error


# What the tools say, and what it means.
_REASONS = (
    (
        ("cuda driver library cannot be found", "libcuda", "no cuda-capable device", "cuda_error_no_device"),
        "no NVIDIA driver or no GPU",
    ),
    (
        (
            "unsupported_ptx_version",
            "unsupported toolchain",
            "insufficient driver",
            "system_driver_mismatch",
            "driver version",
        ),
        (
            "the NVIDIA driver is older than the CUDA toolkit that numba-cuda compiles with: update the driver, or install "
            "keepnorm[cuda12] in place of keepnorm[cuda13]"
        ),
    ),
    (
        ("nvvm", "nvjitlink", "nvrtc", "cudart"),
        'the CUDA compiler libraries are missing: python -m pip install "keepnorm[cuda13]" (or [cuda12])',
    ),
    (("cuda_error_not_initialized", "initialization error"), "CUDA is not usable in this process; after a fork it never is"),
)


def reason(error: BaseException) -> str | None:
    """What an error of the driver, of numba-cuda or of its tools means, or None for any other error."""
    module = type(error).__module__.partition(".")[0]
    if module not in ("numba", "cuda") and not isinstance(error, ImportError):
        return None
    text = str(error).lower()
    return next((meaning for words, meaning in _REASONS if any(word in text for word in words)), None)


def readable(session: Session, x: Array) -> Array:
    """x itself where kernels can read it in place, else a copy: a lazily negated tensor, or a step inside a value."""
    if session.library.name == "torch":
        x = x.detach().resolve_neg()
    size = int(x.itemsize)
    if any(step % size for step in session.library.strides(x)) or session.library.address(x) % size:
        return x.copy() if hasattr(x, "copy") else x.clone()
    return x


def outputs(session: Session, x: Array, out: Array | None) -> tuple[Array, Array]:
    """What is handed back and what the kernels write: another array where `out` overlaps x in a different layout."""
    name = result_name(dtype_name(x.dtype))
    if out is None:
        result = session.device.empty_like(x, name)
        return result, result
    library = session.library
    if 0 in x.shape:
        return out, out
    (x0, x1), (y0, y1) = span(library, x), span(library, out)
    same = library.address(x) == library.address(out) and library.strides(x) == library.strides(out)
    if (same and x.dtype == out.dtype) or y1 <= x0 or x1 <= y0:
        return out, out
    return out, session.device.empty_like(x, name)


def finish(session: Session, result: Array, target: Array) -> Array:
    """The result, after what was written beside it."""
    if result is not target:
        session.library.copy(result, target)
    return result


def parameters(
    session: Session, weight: Array | None, bias: Array | None, order: tuple[tuple[int, bool], ...], in_order: bool
) -> tuple[Array | None, Array | None, str]:
    """Weight and bias as the kernels read them, in the order of the plan, and their dtype ('' for neither).

    In place where both are floating, of one dtype, contiguous, aligned and in order; else as float64.
    """
    both = [a for a in (weight, bias) if a is not None]
    if not both:
        return None, None, ""
    library = session.library
    names = {dtype_name(a.dtype) for a in both}
    direct = in_order and len(names) == 1 and names <= set(FLOATING)
    if direct and all(is_contiguous(library, a) and library.address(a) % ALIGNMENT == 0 for a in both):
        w, b = (None if a is None else _detached(a).reshape(-1) for a in (weight, bias))
        return _raw(session, w), _raw(session, b), names.pop()
    w, b = (None if a is None else from_cells(_detached(a), order) for a in (weight, bias))
    return w, b, "float64"


def _raw(session: Session, values: Array | None) -> Array | None:
    """In the simulator, half types as their bits."""
    if values is None or session.library.name != "simulator":
        return values
    from keepnorm.kernels.cuda_device import RAW

    return values.view(RAW[dtype_name(values.dtype)])


def _detached(values: Array) -> Array:
    return values.detach().resolve_neg() if hasattr(values, "detach") else values


def state_from(session: Session, moments: Moments, order: tuple[tuple[int, bool], ...], in_order: bool) -> dict[str, Any]:
    """Moments as the kernels read them; without a count, M2 is the variance itself."""
    x = session.device.like
    state: dict[str, Any] = {"n": float(moments.count) if isinstance(moments.count, int) else 1.0}
    for name in ("shift", "delta", "m2"):
        state[name] = _state_row(getattr(moments, name), x, order, in_order)
    if moments.count is not None and not isinstance(moments.count, int):
        state["count"] = _state_row(moments.count, x, order, in_order)
    return state


def _state_row(values: Array, x: Array, order: tuple[tuple[int, bool], ...], in_order: bool) -> Array:
    values = _detached(like(values, x))
    xp = array_namespace(values)
    if in_order:
        return xp.reshape(xp.astype(values, xp.float64), (-1,))
    return from_cells(values, order)


def to_cells(values: Array, order: tuple[tuple[int, bool], ...], shape: tuple[int, ...]) -> Array:
    """Values in the order of the plan, as an array of the sizes of those axes, ascending."""
    xp = array_namespace(values)
    if not order:
        return xp.reshape(values, ())
    shaped = xp.reshape(values, tuple(shape[a] for a, _ in order))
    turned = tuple(position for position, (_, back) in enumerate(order) if back)
    if turned:
        shaped = xp.flip(shaped, axis=turned)
    ranks = [a for a, _ in order]
    if ranks == sorted(ranks):
        return shaped
    return xp.permute_dims(shaped, tuple(ranks.index(a) for a in sorted(ranks)))


def from_cells(values: Array, order: tuple[tuple[int, bool], ...]) -> Array:
    """An array of one size for each axis of `order`, ascending, as flat float64 in that order."""
    xp = array_namespace(values)
    ranked = sorted(a for a, _ in order)
    shaped = xp.permute_dims(values, tuple(ranked.index(a) for a, _ in order)) if order else values
    turned = tuple(position for position, (_, back) in enumerate(order) if back)
    if turned:
        shaped = xp.flip(shaped, axis=turned)
    return xp.reshape(xp.astype(shaped, xp.float64, copy=True), (-1,))
