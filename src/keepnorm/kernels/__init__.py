"""The only files that import Numba."""
