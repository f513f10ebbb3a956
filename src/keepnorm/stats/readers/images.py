"""Pictures that Pillow reads faithfully; each is (1, height, width, channels), and each frame is one picture."""

import io
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from keepnorm.stats.options import Options
from keepnorm.stats.readers.modes import converted
from keepnorm.stats.readers.source import Array, Piece, Source, line

_MODES = ("1", "L", "LA", "RGB", "RGBA", "I;16", "I", "F")
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "DIB", "WEBP", "PPM", "TGA")
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
)
_limit = threading.Lock()


def open_image(path: Path, _member: str, options: Options, _cleanup: ExitStack) -> list[Source]:
    """All frames of a picture."""
    return [Source(str(path), stream=partial(_file, path, options), pictures=True)]


def _file(path: Path, options: Options) -> Iterator[Piece]:
    with path.open("rb") as file:
        yield from pictures(file, str(path), options)


def pictures(file: IO[bytes], name: str, options: Options) -> Iterator[Piece]:
    """The frames of a picture in an open file."""
    from PIL import Image

    if _is_deep_png(file):
        yield _deep_png(file, name, options), None
        return
    try:
        with _limit:  # of Pillow for all; ours is checked here, before anything is decoded
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(file, formats=_FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = before
        with image:
            check_pixels(image.size, name, options)
            # The other pictures of a JPEG (MPO) are previews, or the second eye.
            frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
            for i in range(frames):
                if frames > 1:
                    image.seek(i)
                yield converted(_pixels(image, frames, name, options), options.mode, name), None
    except _DAMAGED as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name}: not an image that can be read: {line(error)}") from error


def check_pixels(size: tuple[int, ...], name: str, options: Options) -> None:
    """Refuse a picture that is too large to be decoded."""
    if size[0] * size[1] > options.max_pixels:
        raise ValueError(f"{name}: {size[0]:,} x {size[1]:,} pixels are more than --max-pixels {options.max_pixels:,}")


def _pixels(image: Any, frames: int, name: str, options: Options) -> Array:
    from PIL import Image

    picture = image
    if frames > 1 or image.mode in ("P", "PA"):
        # Frames of one animation may have a palette each, or none: they are alike only as colours.
        clear = "transparency" in image.info or image.mode in ("PA", "RGBA", "LA")
        picture = image.convert("RGBA" if clear else "RGB")
    elif image.mode not in _MODES:
        if options.mode is None:
            raise ValueError(f"{name}: holds {image.mode} pixels; --mode RGB converts them")
        picture = image.convert("RGB")
    if options.resize or options.center_crop:
        if picture.mode == "1":
            picture = picture.convert("L")
        if options.resize:
            width, height = picture.size
            short = min(width, height)
            size = tuple(options.resize if n == short else int(options.resize * n / short) for n in (width, height))
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        if options.center_crop:
            n, (width, height) = options.center_crop, picture.size
            left, top = round((width - n) / 2.0), round((height - n) / 2.0)
            picture = picture.crop((left, top, left + n, top + n))
    values = np.asarray(picture)
    return values.reshape(1, *values.shape[:2], -1)


def _is_deep_png(file: IO[bytes]) -> bool:
    """Pillow reads 16-bit PNG with colours or transparency as 8 bits, without a word."""
    start = file.read(26)
    file.seek(0)
    return start[:8] == b"\x89PNG\r\n\x1a\n" and len(start) == 26 and start[24] == 16 and start[25] != 0


def _deep_png(file: IO[bytes], name: str, options: Options) -> Array:
    from keepnorm.stats.readers.table import need

    codecs = need("imagecodecs", "images", f"{name}: 16-bit colour PNG")
    if options.resize or options.center_crop:
        raise ValueError(f"{name}: --resize and --center-crop take 8-bit pictures; this has 16 bits")
    head = file.read(26)
    check_pixels(struct.unpack(">II", head[16:24]), name, options)
    file.seek(0)
    try:
        values = codecs.png_decode(file.read())
    except (RuntimeError, ValueError) as error:  # imagecodecs' own errors are RuntimeErrors
        raise ValueError(f"{name}: not an image that can be read: {line(error)}") from error
    return converted(values.reshape(1, *values.shape[:2], -1), options.mode, name)


def from_bytes(data: bytes, name: str, options: Options) -> Iterator[Piece]:
    """The frames of a picture in memory."""
    yield from pictures(io.BytesIO(data), name, options)
