"""What every call on a CUDA device begins and ends with: one device, memory that kernels can walk, results, parameters."""

from typing import Any, NamedTuple

from array_api_compat import array_namespace

from keepnorm.engines.cuda.memory import ALIGNMENT, Library, library_of, span
from keepnorm.engines.cuda.walk import Device, Walk, check_process, mark_used
from keepnorm.engines.dispatch import dtype_name
from keepnorm.kernels.cuda.device import RAW, DriverError
from keepnorm.moments import Moments
from keepnorm.precision import FLOATING, result_name
from keepnorm.transfer import like

Array = Any


class opened:  # noqa: N801
    """Make the device of x the current one for a call whose arrays must all lie there.

    Raises
    ------
    ValueError
        If an array lies on another device.
    RuntimeError
        If there is no driver, or one too old for the compiled kernels; if the process was forked with CUDA in use.
    """

    __slots__ = ("inside", "others", "x")

    def __init__(self, x: Array, *others: Array | None) -> None:
        self.x, self.others = x, others

    def __enter__(self) -> Device:
        """Where the call runs."""
        check_process()
        x = self.x
        library = library_of(x)
        number = library.device_of(x)
        for other in self.others:
            if other is not None and (library_of(other) is not library or library.device_of(other) != number):
                raise ValueError(
                    f"x and what goes with it must be on one device; got {library.name} device {number} and "
                    f"{library_of(other).name} device {library_of(other).device_of(other)}"
                )
        with explained():
            device = Device(library, x, number, library.stream(number))
            self.inside = library.inside(number)
            self.inside.__enter__()
        return device

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.inside.__exit__(kind, error, trace)
        if error is None:
            mark_used()
        else:
            explain(error)


class explained:  # noqa: N801
    """Say what to do about an error of the driver or of the compiler's tools."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            explain(error)


def explain(error: BaseException) -> None:
    """Raise an error that says what to do, if that is known."""
    text = reason(error)
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
    if module not in ("numba", "cuda") and not isinstance(error, (ImportError, DriverError)):
        return None
    text = str(error).lower()
    return next((meaning for words, meaning in _REASONS if any(word in text for word in words)), None)


def readable(device: Device, x: Array) -> Array:
    """x itself where kernels can read it in place, else a copy: a lazily negated tensor, or a step inside a value."""
    library = device.library
    x = library.plain(x)
    if library.steps(x) is None or library.address(x) % library.itemsize(x):
        return library.copied(x)
    return x


def outputs(device: Device, x: Array, out: Array | None) -> tuple[Array, Array]:
    """What is handed back and what the kernels write: another array where `out` overlaps x in a different layout."""
    name = result_name(dtype_name(x.dtype))
    if out is None:
        result = device.empty_like(x, name)
        return result, result
    if 0 in x.shape:
        return out, out
    library = device.library
    if x.dtype == out.dtype and library.address(x) == library.address(out) and library.steps(x) == library.steps(out):
        return out, out
    whole = library.steps(x) is not None and library.steps(out) is not None
    if whole:
        (x0, x1), (y0, y1) = span(library, x), span(library, out)
        if y1 <= x0 or x1 <= y0:
            return out, out
    return out, device.empty_like(x, name)


def finish(device: Device, result: Array, target: Array) -> Array:
    """The result, after what was written beside it."""
    if result is not target:
        device.library.copy(result, target)
    return result


def parameters(
    device: Device, weight: Array | None, bias: Array | None, steps: Walk
) -> tuple[Array | None, Array | None, str]:
    """Weight and bias as the kernels read them, in the order of the plan, and their dtype ('' for neither).

    In place where both are floating, of one dtype, contiguous, aligned and in order; else as float64.
    """
    library = device.library
    w, b = (None if a is None else library.plain(a) for a in (weight, bias))
    both = [a for a in (w, b) if a is not None]
    if not both:
        return None, None, ""
    name = dtype_name(both[0].dtype)
    if (
        steps.affine_in_order
        and name in FLOATING
        and both[0].dtype == both[-1].dtype
        and all(_is_flat(library, a) for a in both)
    ):
        return _raw(library, w), _raw(library, b), name
    w, b = (None if a is None else from_cells(a, steps.cut.plan.affine_order) for a in (w, b))
    return w, b, "float64"


def _is_flat(library: Library, values: Array) -> bool:
    """Whether vectors of these values can be loaded from where they are."""
    return library.address(values) % ALIGNMENT == 0 and library.contiguous(values)


def _raw(library: Library, values: Array | None) -> Array | None:
    """In the simulator, half types as their bits."""
    if values is None or library.name != "simulator":
        return values
    return values.view(RAW[dtype_name(values.dtype)])


class State(NamedTuple):
    """What kernels read of the cells, by the names of their arguments, and the arrays whose memory that is."""

    given: dict[str, Any]
    held: Any


def state_from(device: Device, moments: Moments, steps: Walk) -> State:
    """Moments as the kernels read them, in place where they are; without a count, M2 is the variance itself."""
    rows = {"shift": moments.shift, "delta": moments.delta, "m2": moments.squares}
    held = {name: _state_row(device, row, steps) for name, row in rows.items()}
    n = 1.0
    if isinstance(moments.count, int):
        n = float(moments.count)
    elif moments.count is not None:
        held["count"] = _state_row(device, moments.count, steps)
    return State({"n": n, **{name: device.pointer(row) for name, row in held.items()}}, held)


def _state_row(device: Device, values: Array, steps: Walk) -> Array:
    library = device.library
    if type(values) is not type(device.like) or library.device_of(values) != device.number:
        values = like(values, device.like)
    values = library.plain(values)
    if steps.cells_in_order and dtype_name(values.dtype) == "float64" and library.contiguous(values):
        return values
    return from_cells(values, steps.cut.plan.cell_order)


def to_cells(values: Array, steps: Walk, shape: tuple[int, ...]) -> Array:
    """Values in the order of the plan, as an array of the sizes of those axes, ascending."""
    order = steps.cut.plan.cell_order
    if steps.cells_in_order:
        return values if len(order) == 1 else values.reshape(tuple([shape[a] for a, _ in order]))
    xp = array_namespace(values)
    shaped = xp.reshape(values, tuple(shape[a] for a, _ in order))
    turned = tuple(position for position, (_, back) in enumerate(order) if back)
    if turned:
        shaped = xp.flip(shaped, axis=turned)
    ranks = [a for a, _ in order]
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
