"""The smaller and the larger of two integers: Numba's own are compiled anew for each combination of types, 18 ms each."""

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
