"""CuPy, PyTorch and JAX arrays on a GPU through the CUDA kernels."""
