"""Layers of the frameworks, on the functions of this package: each submodule imports its framework, and no other."""
