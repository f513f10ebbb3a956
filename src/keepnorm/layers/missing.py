"""What to say where a framework is not installed."""


def missing(module: str, library: str, package: str) -> ImportError:
    """The error of a submodule whose framework is not there.

    Examples
    --------
    >>> print(missing("keepnorm.layers.torch", "PyTorch", "torch"))
    keepnorm.layers.torch needs PyTorch: python -m pip install torch
    """
    return ImportError(f"{module} needs {library}: python -m pip install {package}")
