"""The CPU kernels: what one task of each family does, and the parts that the families share."""
