"""The dtypes under which arrays of halves reach the kernels."""

import numpy as np

# Numba has no half types on the CPU, so that such arrays come as records of their raw bits, told apart by the field name.
FLOAT16 = np.dtype([("float16", np.uint16)])
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
