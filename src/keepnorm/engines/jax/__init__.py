"""JAX arrays: CPU kernels where they are concrete, jax.numpy and jax.lax where they are traced."""
