"""Pictures of one mode: grey, grey with alpha, RGB and RGBA by Pillow's rules, for any depth."""

import numpy as np

from keepnorm.stats.options import MODES
from keepnorm.stats.readers.source import Array

_NAMES = {n: mode for mode, n in MODES.items()}
# ITU-R 601 in 16 bits, as Pillow has it: L = (19595 R + 38470 G + 7471 B + 32768) >> 16.
_GREY = (19595, 38470, 7471)


def converted(values: Array, mode: str | None, name: str) -> Array:
    """Pictures (n, height, width, channels) in `mode`."""
    if mode is None or _NAMES.get(values.shape[-1]) == mode:
        return values
    have = values.shape[-1]
    if have not in _NAMES:
        raise ValueError(f"{name}: has {have} channels, which --mode {mode} cannot convert")
    if values.dtype == bool:
        values = values.astype(np.uint8) * np.uint8(255)
    top = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
    colours = values[..., : 1 if have < 3 else 3]
    alpha = values[..., -1:] if have in (2, 4) else np.full_like(values[..., :1], top)
    if MODES[mode] < 3 <= have:
        colours = _grey(colours)
    elif MODES[mode] >= 3 > have:
        colours = np.repeat(colours, 3, axis=-1)
    return np.concatenate([colours, alpha], -1) if MODES[mode] in (2, 4) else colours


def _grey(colours: Array) -> Array:
    if colours.dtype.kind == "f":
        return (colours @ (np.array(_GREY) / 65536)).astype(colours.dtype)[..., None]
    weighed = colours.astype(np.int64) @ np.array(_GREY, np.int64) + 32768
    return (weighed >> 16).astype(colours.dtype)[..., None]


def described(channels: int) -> str:
    """A number of channels, with the name of its mode.

    Examples
    --------
    >>> described(3)
    '3 channels (RGB)'
    """
    mode = f" ({_NAMES[channels]})" if channels in _NAMES else ""
    return f"{channels} channel{'s' * (channels != 1)}{mode}"
