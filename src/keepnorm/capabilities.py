"""What each array library gets, as data: the tests hold keepnorm to it, and the documentation prints it."""

from typing import NamedTuple

_ALL = (
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)


# What JAX sums in without x64: the sum of two float32, of which the second holds what the first has lost.
_PAIRS = "float64 with x64, else pairs of float32"


class Backend(NamedTuple):
    """One kind of array.

    Attributes
    ----------
    name : str
        How the tests and the table call it.
    package : str
        What must be installed.
    engine : str
        The engine that serves it, as `dispatch.name_of` says.
    kernels : bool
        Whether the work is done by the kernels of this package, with the bits that NumPy gets.
    shares_memory : bool
        Whether x is read where it is, without a copy.
    lazy : bool
        Whether nothing is computed before the library is asked to.
    gradient : str
        Where derivatives come from: "vjp" only :func:`keepnorm.normalize_vjp`, or "library" the library's own, of any order.
    compiled : str
        What happens under the library's compiler.
    out : bool
        Whether `out=` is taken.
    accumulates : str
        The dtype in which sums of float32 are held.
    dtypes : tuple of str
        The dtypes taken.
    """

    name: str
    package: str
    engine: str
    kernels: bool
    shares_memory: bool
    lazy: bool
    gradient: str
    compiled: str
    out: bool
    accumulates: str
    dtypes: tuple[str, ...]


BACKENDS = (
    Backend("numpy", "numpy", "host", True, True, False, "vjp", "-", True, "float64", _ALL),
    Backend("torch", "torch", "torch", True, True, False, "library", "one node of the graph", True, "float64", _ALL),
    Backend("torch cuda", "torch", "torch", False, True, False, "library", "operations of the graph", True, "float64", _ALL),
    Backend("torch meta", "torch", "torch", False, True, False, "library", "-", True, "float64", _ALL[:10]),
    Backend("jax", "jax", "jax", True, True, False, "library", "-", False, "float64", _ALL),
    Backend(
        "jax jit",
        "jax",
        "jax",
        False,
        True,
        False,
        "library",
        "traced",
        False,
        "float64 with x64, else pairs of float32",
        _ALL,
    ),
    Backend("dask", "dask", "dask", True, True, True, "vjp", "-", False, "float64", _ALL),
    Backend("xarray", "xarray", "xarray", True, True, False, "vjp", "-", True, "float64", _ALL),
    Backend(
        "array API",
        "array_api_strict",
        "standard",
        False,
        False,
        False,
        "vjp",
        "-",
        True,
        "float64",
        ("float32", "float64", *_ALL[4:]),
    ),
    Backend("mlx", "mlx", "mlx", False, False, True, "library", "traced", True, "float64", _ALL),
    Backend("cupy", "cupy", "cuda", False, True, False, "vjp", "-", True, "float64", _ALL),
)


def table() -> str:
    """The capabilities as a Markdown table.

    Returns
    -------
    str
        One row for each backend, one column for each capability.

    Examples
    --------
    >>> print(table().splitlines()[2])
    | numpy | yes | yes | no | vjp | - | yes | float64 | all |
    """
    heads = ("arrays", "NumPy's bits", "no copy of x", "lazy", "gradient", "compiled", "out=", "accumulates in", "dtypes")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for b in BACKENDS:
        dtypes = "all" if b.dtypes == _ALL else "all but " + ", ".join(d for d in _ALL if d not in b.dtypes)
        flags = ("yes" if flag else "no" for flag in (b.kernels, b.shares_memory, b.lazy))
        cells = (b.name, *flags, b.gradient, b.compiled, "yes" if b.out else "no", b.accumulates, dtypes)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
