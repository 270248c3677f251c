"""Images as users have them: files, or bytes in a table; decoded in one way, whatever their mode.

Every image is decoded once before anything is trained, so that a damaged one is named there and not hours later. They
are read again for each batch and never held in memory together.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nxm.errors import UserError, first_line

SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Pillow opens some other formats by starting a program, such as Ghostscript
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 89_478_485  # Pillow's own limit (a quarter of a GiB in 3 bytes per pixel), above which it warns of a bomb


@dataclass(frozen=True)
class Picture:
    """An image that was decoded once. Two are equal if their pixels are.

    Attributes:
        place: the file, or table, column and row, for messages.
        read: returns the file's bytes.
        digest: sha256 of the size and the RGB pixels.
    """

    place: str = field(compare=False)
    read: Callable[[], bytes] = field(compare=False, repr=False)
    digest: str

    def pixels(self) -> Image.Image:
        """Return the image in RGB. Raises UserError if its file has vanished or changed since it was first read."""
        image = decode(self.read, self.place)
        if digest_of(image) != self.digest:
            raise UserError(f"{self.place}: the image changed while nxm was running: start again")
        return image


def digest_of(image: Image.Image) -> str:
    """Return sha256 over an image's size and pixels."""
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def decode(read: Callable[[], bytes], place: str) -> Image.Image:
    """Return an image in RGB, turned upright by its EXIF orientation.

    Greyscale, palette and CMYK become RGB; transparency is dropped, 16-bit greyscale keeps its upper 8 bits. Of an
    animation it is the first frame.

    Raises:
        UserError: it cannot be read, is no image, truncated, damaged, has more than `MOST_PIXELS`, or has 32-bit
            numbers for pixels, whose range is not known.
    """
    try:
        content = read()
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {error.strerror or first_line(error)}") from None
    if not content:
        raise UserError(f"{place}: the image is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of bombs, which are refused below
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), place)
    except Image.DecompressionBombError:
        raise UserError(
            f"{place}: has more than {MOST_PIXELS / 1e6:.0f} million pixels: make it smaller; models read far fewer"
        ) from None
    except UnidentifiedImageError:
        raise UserError(f"{place}: is no image that Pillow reads ({', '.join(FORMATS)}), or is damaged") from None
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders meet damaged files with errors of many types
        raise UserError(f"{place}: the image is truncated or damaged: {first_line(error)}") from None


def _to_rgb(image: Image.Image, place: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert() would turn all but the darkest pixels white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError(f"{place}: has 32-bit numbers for pixels (mode {image.mode}): save it with 8 bits per channel")
    return image.convert("RGB")


def looks_like_image(cell: Any) -> bool:
    """Return whether a table's cell is an image of `datasets`, or the name of an image's file."""
    if isinstance(cell, Mapping):
        return {"bytes", "path"} <= cell.keys()
    return isinstance(cell, str) and cell.strip().lower().endswith(SUFFIXES)


def open_picture(cells: Sequence[Any], row: int, folder: Path, where: str) -> Picture:
    """Return the image in a cell of a table: its path, or `datasets`' mapping with bytes or path.

    Args:
        cells: the column, which may lie on the disk.
        row: from 0.
        folder: the table's, to which paths are relative.
        where: table, column and row, for messages.

    Raises:
        UserError: the cell is no such thing, the path leads out of the folder, there is no such file, or see `decode`.
    """
    cell = cells[row]
    if isinstance(cell, Mapping) and cell.get("bytes"):
        return _decoded(partial(_bytes_of, cells, row), where)
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    if not isinstance(path, str) or not path.strip():
        raise UserError(f"{where}: {cell!r:.60} is no image: expected the path of its file, or `datasets`' Image")
    file = _within(path.strip(), folder, where)
    return _decoded(file.read_bytes, f"{where}: {file}")


def open_file(file: Path) -> Picture:
    """Return the image in a file. Raises UserError, see `decode`."""
    return _decoded(file.read_bytes, str(file))


def _decoded(read: Callable[[], bytes], place: str) -> Picture:
    return Picture(place, read, digest_of(decode(read, place)))


def _bytes_of(cells: Sequence[Any], row: int) -> bytes:
    return bytes(cells[row]["bytes"])


def _within(path: str, folder: Path, where: str) -> Path:
    """Return a table's file. Links inside the folder may lead elsewhere: the user made them, and not the table."""
    if "://" in path:
        raise UserError(f"{where}: '{path:.80}' is an address: download the images into {folder}")
    root = os.path.abspath(folder)
    file = Path(os.path.normpath(os.path.join(root, path)))
    if "\0" in path or not file.is_relative_to(root):
        raise UserError(f"{where}: '{path:.80}' leads out of the table's folder {folder}: put the images below it")
    try:
        found = file.is_file()
    except OSError:  # such as a name that is too long
        found = False
    if not found:
        raise UserError(f"{where}: there is no file {file!s:.300}")
    return folder / file.relative_to(root)
