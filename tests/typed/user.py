"""A user's program, which type checkers read and nobody runs: lines marked as errors must be refused, and no others."""

from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import keepnorm as kn

x: NDArray[np.float32] = np.ones((2, 3, 4), np.float32)
w: NDArray[np.float32] = np.ones(3, np.float32)

assert_type(kn.normalize(x, 1), NDArray[np.float32])
assert_type(kn.normalize(x, (0, -1), affine=1, eps=1e-3, weights=x), NDArray[np.float32])
assert_type(kn.normalize(x, "b (g c) t -> b g", w, affine="g c", g=3), NDArray[np.float32])
assert_type(kn.layer_norm(x, w, axes=1, nan_policy="omit", fill="input"), NDArray[np.float32])
assert_type(kn.batch_norm(x, w, w, channel=1, moments=kn.moments(x, 1)), NDArray[np.float32])
assert_type(kn.denormalize(x, 1, moments=kn.moments(x, 1)), NDArray[np.float32])
assert_type(kn.moments(x, 1), kn.Moments)
assert_type(kn.moments(x, 1) + kn.moments(x, 1), kn.Moments)
assert_type(kn.moments(x, 1).pool(()), kn.Moments)
y, vjp = kn.normalize_vjp(x, 1, w)
assert_type(y, NDArray[np.float32])
assert_type(vjp(y), kn.Gradients)
assert_type(kn.__version__, str)
seen = kn.Accumulator(1, nan_policy="omit")
seen.update(x, weights=x)
assert_type(seen.moments, kn.Moments)

kn.normalize(x)  # error: keep is missing
kn.normalize(x, axis=1)  # error
kn.normalize(x, 1, axis=1)  # error
kn.normalize(x, 1, epsilon=1e-3)  # error
kn.normalize("x", 1)  # error
kn.normalize([1.0, 2.0], 0)  # error
kn.normalize(x, 1.5)  # error
kn.moments(x)  # error
kn.moments(x, 1, nan_policy="skip")  # error
kn.layer_norm(x, -1)  # error
kn.layer_norm(x)  # error
kn.batch_norm(x, channel=1, momentum=0.1)  # error
kn.group_norm(x, channel=1)  # error
kn.denormalize(x, 1)  # error
kn.normalize(x, 1, fill="zero")  # error
print(kn.nothing)  # error
