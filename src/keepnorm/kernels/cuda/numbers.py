"""Values of every dtype as float64 and back, on the device: what scalars.py does for the CPU, with the same answers."""

from functools import cache

import numpy as np

from keepnorm.kernels.cuda.device import RAW, bits_to_float, float_to_bits, float_to_half, half_to_float, inlined

# A reduction whose q = sum (x - K)^2 exceeds this multiple of M2 had an outlier for its K: 2.6 deviations away, one normal
# value in a hundred. All blocks of a cell share one K here, so that the bound is nearer than that of scalars.py.
OUTLIER = 8.0


@inlined
def to_bfloat(value):
    """The bits of the bfloat16 nearest to a float32, ties to even; a NaN stays one."""
    if value != value:
        return np.uint16(0x7FC0)
    bits = float_to_bits(value)
    rounded = np.uint64(bits) + np.uint64(0x7FFF) + np.uint64((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(rounded >> np.uint64(16))


def _float16_less(value, shift):
    return np.float64(half_to_float(value)) - shift


def _bfloat16_less(value, shift):
    return np.float64(bits_to_float(np.uint32(value) << np.uint32(16))) - shift


def _int64_less(value, shift):
    whole = np.int64(shift)
    if value >= whole:
        return np.float64(np.uint64(value) - np.uint64(whole))
    return -np.float64(np.uint64(whole) - np.uint64(value))


def _uint64_less(value, shift):
    whole = np.uint64(shift)
    if value >= whole:
        return np.float64(value - whole)
    return -np.float64(whole - value)


def _less(value, shift):
    return np.float64(value) - shift


_DIFFERENCES = {"float16": _float16_less, "bfloat16": _bfloat16_less, "int64": _int64_less, "uint64": _uint64_less}


@cache
def difference(name):
    """``value - shift`` as float64; exact for integers of 64 bits, which float64 cannot hold."""
    return inlined(_DIFFERENCES.get(name, _less))


@cache
def widen(name):
    """The value as float64."""
    if name in ("int64", "uint64"):
        return inlined(lambda value: np.float64(value))
    less = difference(name)
    return inlined(lambda value: less(value, 0.0))


@cache
def anchor(name):
    """The value as the shift K of its cell: itself as float64 (long integers with the last bits cleared), 0 if not finite."""
    if name == "int64":

        def signed(value):
            if np.int64(-(2**53)) < value < np.int64(2**53):
                return np.float64(value)
            return np.float64((value >> np.int64(11)) << np.int64(11))

        return inlined(signed)
    if name == "uint64":

        def unsigned(value):
            if value < np.uint64(2**53):
                return np.float64(value)
            return np.float64((value >> np.uint64(11)) << np.uint64(11))

        return inlined(unsigned)
    wide = widen(name)

    def finite(value):
        k = wide(value)
        return k if k - k == 0.0 else 0.0

    return inlined(finite)


@cache
def settle(name):
    """A mean as the shift K of a second sweep: whole, where differences from it are taken between integers."""
    if name == "int64":
        return inlined(lambda k: np.float64(np.int64(k)))
    if name == "uint64":
        return inlined(lambda k: np.float64(np.uint64(k)))
    return inlined(lambda k: k)


@cache
def narrow(name):
    """A float64 as a value of the dtype, rounded to nearest."""
    if name == "float16":
        return inlined(lambda value: float_to_half(np.float32(value)))
    if name == "bfloat16":
        return inlined(lambda value: to_bfloat(np.float32(value)))
    if name == "float32":
        return inlined(lambda value: np.float32(value))
    if name == "float64":
        return inlined(lambda value: value)
    raise TypeError(f"a result must be floating; got {name}, stored as {RAW[name]}")
