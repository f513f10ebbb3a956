"""What the README takes from elsewhere: `python docs/readme.py` draws its picture and copies its figures of speed.

The picture is what `keepnorm.explain` draws. The rows are those of docs/performance/cpu.md, which is generated from a record.
"""

import re
from pathlib import Path

import keepnorm as kn

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "_static" / "keep.svg"
GREY = "#808080"  # readable on a light and on a dark page: a picture in a README does not know which it is on
ROWS = (
    "training forward over PyTorch eager",
    "training forward over JAX jit",
    "training forward, out=, over a copy: inner axis reduced",
    "layer norm and RMS norm over PyTorch",
    "backward over PyTorch's backward",
    "backward of wide rows over PyTorch's backward, each",
    "moments of uint8 over astype(float32) and NumPy",
    "warm first normalize in a new process",
)
MARKS = ("<!-- speed table: docs/readme.py -->\n", "<!-- end of speed table -->")


def picture() -> str:
    """The cube of batch norm, as a file of its own."""
    drawn = kn.explain((32, 64, 56, 56), "n c h w -> c").svg()
    return re.sub(r' style="[^"]*"', "", drawn.replace("currentColor", GREY), count=1) + "\n"


def table() -> str:
    """The rows of the promises on speed, as cpu.md has them."""
    lines = (ROOT / "docs" / "performance" / "cpu.md").read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("| what | measured |")][:1]
    rows = [line for name in ROWS for line in lines if line.startswith(f"| {name} | ")]
    if len(rows) != len(ROWS):
        raise ValueError(f"cpu.md must have a row for each of the {len(ROWS)} names of ROWS; got {len(rows)}")
    return "\n".join([*head, "| --- | --- | --- | --- |", *rows, ""])


def text(readme: str) -> str:
    """The README with the table of now between its marks."""
    before, _, rest = readme.partition(MARKS[0])
    return before + MARKS[0] + table() + MARKS[1] + rest.partition(MARKS[1])[2]


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    README.write_text(text(README.read_text(encoding="utf-8")), encoding="utf-8")
