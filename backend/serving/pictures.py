"""Pictures of requests: format and size are checked from their headers, before anything is decoded.

Waiting pictures stay as they came: an opened one can hold 64 MiB of texts that came compressed.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from ..core.errors import BadInput, first_line
from ..storage.images import from_pil

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG")  # no other of Pillow's readers sees a request
START_OF_SCAN = b"\xff\xda"
MOST_SCANS = 100  # of a JPEG; each is a pass over all its pixels. Usual progressive files have ten


@dataclass(frozen=True)
class PictureFile:
    """A PNG or JPEG as it came, and the size that its header says."""

    data: bytes
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def checked(files: Sequence[bytes], most_pixels: int) -> list[PictureFile]:
    """Files of which only the headers are read. Raises BadInput for one that is no picture, and where they
    have more than `most_pixels` together (a small file can claim any size)."""
    pictures, pixels = [], 0
    for number, data in enumerate(files, 1):
        where = f"picture {number} of {len(files)}"
        try:
            opened = _open(data)
        except UnidentifiedImageError as error:
            raise BadInput(f"{where} is no PNG or JPEG") from error
        except Image.DecompressionBombError as error:
            raise BadInput(_too_large(where, most_pixels)) from error
        except _DAMAGED as error:
            raise BadInput(f"{where} is damaged: {first_line(error)}") from error
        picture = PictureFile(data, *opened.size)
        pixels += picture.pixels
        if pixels > most_pixels:
            raise BadInput(_too_large(where, most_pixels, opened.size))
        if opened.format != "PNG" and data.count(START_OF_SCAN) > MOST_SCANS:
            raise BadInput(f"{where} has more than {MOST_SCANS} scans; save it again as a usual JPEG")
        pictures.append(picture)
        del opened  # before the next one: their texts can be large
    return pictures


def decoded(pictures: Sequence[PictureFile]) -> list[Tensor]:
    """Pictures -> (H, W, 3) in 0..1 each. Raises BadInput for one that is damaged."""
    tensors = []
    for number, picture in enumerate(pictures, 1):
        try:
            tensors.append(from_pil(_open(picture.data)))
        except (*_DAMAGED, Image.DecompressionBombError) as error:
            where = f"picture {number} of {len(pictures)}"
            raise BadInput(f"{where} is damaged: {first_line(error)}") from error
    return tensors


# What Pillow's readers raise on damaged files; EXIF adds the last four.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, TypeError, IndexError)


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _too_large(where: str, most: int, size: tuple[int, int] | None = None) -> str:
    claimed = f" ({size[0]} x {size[1]})" if size else ""
    return f"up to {where}{claimed} they have more than {most:,} pixels together; send fewer or smaller ones"
