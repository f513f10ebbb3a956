"""PyTorch tensors: CPU kernels on their memory, CUDA kernels or PyTorch itself elsewhere."""
