"""An accessor for xarray: ``array.kn.normalize("time")``, once this module has been imported."""

from typing import Any

from keepnorm import functional
from keepnorm.layers.missing import missing
from keepnorm.moments import Moments

try:
    import xarray
except ImportError as error:
    raise missing(__name__, "xarray", "xarray") from error

# A dimension, or several.
Dims = Any


@xarray.register_dataarray_accessor("kn")
class Accessor:
    """The functions of keepnorm on a DataArray: dimensions by name, labels kept.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> import keepnorm.layers.xarray
    >>> cube = xr.DataArray(np.arange(6.0).reshape(3, 2), dims=("time", "place"))
    >>> cube.kn.moments("place").mean.values
    array([2., 3.])
    >>> cube.kn.normalize("place").mean("time").values
    array([0., 0.])
    """

    def __init__(self, array: Any) -> None:
        self._array = array

    def moments(self, keep: Dims, **options: Any) -> Moments:
        """Count, mean and variance over the dimensions that are not kept: as :func:`keepnorm.moments`."""
        return functional.moments(self._array, keep, **options)

    def normalize(self, keep: Dims, weight: Any = None, bias: Any = None, **options: Any) -> Any:
        """The array normalised over the dimensions that are not kept: as :func:`keepnorm.normalize`."""
        return functional.normalize(self._array, keep, weight, bias, **options)

    def anomaly(self, keep: Dims, **options: Any) -> Any:
        """The array less its mean over the dimensions that are not kept, such as the climate of each place.

        Parameters
        ----------
        keep : str or tuple of str
            The dimensions that keep a mean each.
        **options
            `where`, `nan_policy` and `weights`, as for :func:`keepnorm.moments`.
        """
        return self._array - functional.moments(self._array, keep, **options).mean
