"""PNG and JPEG files as rows of pixels. A header's size is bounded before anything is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis.errors import Permanent
from train_model import readers
from train_model.readers import NoLabels, Rows, as_rows, told

MAX_PIXELS = 1 << 22
"""2048 x 2048. Larger pictures have to be made smaller anyway before anything of ours could learn from them."""
Pixels = NDArray[np.uint8]


def pixels(path: Path, name: str) -> Pixels:
    """One picture, height x width (grey) or height x width x 3; `Permanent` for anything else."""
    from PIL import Image

    with told(name, "PNG or JPEG"):
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ValueError(f"{width} x {height} pixels, at most {MAX_PIXELS:,} are read")
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels have more than 8 bits (mode {image.mode})")
                return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error


def rows(pictures: Sequence[tuple[str, Pixels]], numbers: bool) -> Rows:
    """Pictures by their paths. The folder of each is its label; grey ones become coloured where others are."""
    if bare := [path for path, _ in pictures if "/" not in path]:
        raise NoLabels(f"{_some(bare)} lie in no folder, whose name would be the label")
    sizes = Counter(picture.shape[:2] for _, picture in pictures)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        other = [path for path, picture in pictures if picture.shape[:2] != usual]
        found = ", ".join(f"{count:,} of {width} x {height}" for (height, width), count in sizes.most_common(5))
        raise Permanent("the images do not have one size", {"found": found, "not the usual one": _some(other)})
    coloured = any(picture.ndim == 3 for _, picture in pictures)
    size = len(pictures) * pictures[0][1].shape[0] * pictures[0][1].shape[1] * (3 if coloured else 1)
    if size * 4 > readers.MAX_BYTES:
        raise Permanent(f"{size:,} numbers in all images together are more than fit into {readers.MAX_BYTES:,} bytes")
    table = np.stack([_coloured(picture) if coloured else picture for _, picture in pictures]).astype(np.float32)
    labels = np.array([path.split("/")[-2] for path, _ in pictures])
    with told("the folders' names", "set of labels"):
        return as_rows(table, labels, None, table.shape[1:], numbers=numbers)


def _coloured(picture: Pixels) -> NDArray[Any]:
    return picture if picture.ndim == 3 else np.repeat(picture[:, :, np.newaxis], 3, axis=2)


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:5]) + (f" and {len(paths) - 5:,} more" if len(paths) > 5 else "")
