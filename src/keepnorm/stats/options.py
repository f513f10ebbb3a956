"""What can be asked of the statistics of files, in one place for the command line and for Python."""

from dataclasses import dataclass, fields
from typing import Any

from keepnorm.machine import cores, memory_bytes

CHOICES = {"nan_policy": ("propagate", "omit", "raise"), "on_error": ("fail", "skip", "report")}
MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_LEAST = 512 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """How files are read and summed; every field is a keyword of :func:`keepnorm.stats`.

    Attributes
    ----------
    mode : str, optional
        Pictures become L, LA, RGB or RGBA, by Pillow's rules. Without it they must be alike.
    nodata : "auto", "none", float or tuple of float
        Which values are gaps: those that the file declares, none, or these (a tuple has one for each entry of the last axis).
    nan_policy : {"propagate", "omit", "raise"}
        What a NaN does.
    scale : "auto" or float, optional
        Divide by this; "auto" by the largest value of an integer type, so that pictures are 0 to 1.
    resize, center_crop : int, optional
        Pictures are resized (shorter side) and cropped as torchvision does it.
    max_pixels : int
        Larger pictures are refused before they are decoded.
    on_error : {"fail", "skip", "report"}
        What a file that cannot be read does; "report" names each that is skipped.
    follow_links : bool
        Whether linked folders are read.
    per_item : bool
        Average the standard deviations of the items (pictures, entries of axis 0), too.
    min_max : bool
        Find the smallest and the largest value of each cell, too.
    memory : int, optional
        How many bytes may be used; a quarter of the machine's and 512 MiB at least unless said otherwise.
    workers : int, optional
        How many threads read, decode and sum.
    checkpoint : str, optional
        A file that holds the state of the run, so that the next run goes on from there.
    """

    mode: str | None = None
    nodata: str | float | tuple[float, ...] = "auto"
    nan_policy: str = "propagate"
    scale: str | float | None = None
    resize: int | None = None
    center_crop: int | None = None
    max_pixels: int = 178_956_970
    on_error: str = "fail"
    follow_links: bool = True
    per_item: bool = False
    min_max: bool = False
    memory: int | None = None
    workers: int | None = None
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no choice."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if self.mode is not None and self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        if isinstance(self.nodata, str) and self.nodata not in ("auto", "none"):
            raise ValueError(f"nodata must be auto, none or a number; got {self.nodata!r}")
        if isinstance(self.scale, str) and self.scale != "auto":
            raise ValueError(f"scale must be auto or a number; got {self.scale!r}")
        if not isinstance(self.scale, str) and self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale must be above 0; got {self.scale!r}")
        for name in ("resize", "center_crop", "max_pixels", "memory", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value!r}")

    @property
    def bytes(self) -> int:
        """How many bytes may be used."""
        return self.memory or max(_LEAST, memory_bytes() // 4)

    @property
    def threads(self) -> int:
        """How many threads read, decode and sum."""
        return self.workers or min(cores(), 8)

    def fingerprint(self) -> dict[str, Any]:
        """What the numbers depend on, for a checkpoint to compare."""
        names = {f.name for f in fields(self)} - {"workers", "checkpoint", "on_error"}
        return {name: repr(getattr(self, name)) for name in sorted(names)}
