"""NumPy arrays through the CPU kernels."""
