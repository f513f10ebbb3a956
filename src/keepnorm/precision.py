"""Which dtype comes out: result and moments for every dtype that goes in.

Names, not dtype objects, so that one table serves NumPy, ml_dtypes and every framework.
"""

FLOATING = ("float16", "bfloat16", "float32", "float64")
INTEGER = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def result_name(name: str) -> str:
    """The dtype of a normalised array: the input's if floating, float32 for integers, float64 for 64-bit ones.

    Raises
    ------
    TypeError
        If x is complex, or no number at all.
    """
    if name in FLOATING:
        return name
    if name in INTEGER:
        return "float64" if name.endswith("64") else "float32"
    if name.startswith("complex"):
        raise TypeError(
            f"x must be real: a complex mean has a variance that is not defined here; got {name} "
            "(pass x.real and x.imag, or the magnitude)"
        )
    raise TypeError(f"x must hold bool, integers or floating point numbers; got {name}")


def moments_name(name: str) -> str:
    """The dtype of a mean and a variance that are handed out: float64 for 64-bit data, float32 for the rest."""
    return "float64" if result_name(name) == "float64" else "float32"
