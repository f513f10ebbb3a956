"""Integers: the smaller and the larger of two, since Numba's own take 18 ms for each combination of types, and their range."""

from numba import types
from numba.extending import intrinsic


@intrinsic
def least(typing, a, b):
    """The smaller of two integers."""

    def generate(context, builder, signature, arguments):
        return builder.select(builder.icmp_signed("<", *arguments), *arguments)

    return types.intp(types.intp, types.intp), generate


@intrinsic
def most(typing, a, b):
    """The larger of two integers."""

    def generate(context, builder, signature, arguments):
        return builder.select(builder.icmp_signed(">", *arguments), *arguments)

    return types.intp(types.intp, types.intp), generate


def whole_range(kind):
    """The least and the largest float64 that are integers of a type of 64 bits; a mean may lie outside, if it is given."""
    return (-(2.0**63), 2.0**63 - 1024) if kind.signed else (0.0, 2.0**64 - 2048)
