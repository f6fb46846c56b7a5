"""Pictures of requests: format and size are checked from their headers, before anything is decoded."""

from __future__ import annotations

import base64
import io
import struct
from typing import TYPE_CHECKING

from ..core.errors import BadInput, first_line
from ..storage.images import from_pil

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FORMATS = ("PNG", "JPEG")  # no other of Pillow's readers sees a request


def opened(texts: list[str], most_pixels: int) -> list[Image]:
    """Base64 texts -> pictures of which only the headers are read. Raises BadInput for a text that is no
    picture, and where they have more than `most_pixels` together (a small file can claim any size)."""
    from PIL import Image, UnidentifiedImageError

    pictures, pixels = [], 0
    for number, text in enumerate(texts, 1):
        where = f"picture {number} of {len(texts)}"
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise BadInput(f"{where} is no base64 text") from error
        try:
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise BadInput(f"{where} is no PNG or JPEG") from error
        except Image.DecompressionBombError as error:
            raise BadInput(_too_large(where, most_pixels)) from error
        except _DAMAGED as error:
            raise BadInput(f"{where} is damaged: {first_line(error)}") from error
        pixels += picture.width * picture.height
        if pixels > most_pixels:
            raise BadInput(_too_large(where, most_pixels, picture.size))
        pictures.append(picture)
    return pictures


def decoded(pictures: list[Image]) -> list[Tensor]:
    """Opened pictures -> (H, W, 3) in 0..1 each. Raises BadInput for one that is damaged."""
    from PIL import Image

    tensors = []
    for number, picture in enumerate(pictures, 1):
        try:
            tensors.append(from_pil(picture))
        except (*_DAMAGED, Image.DecompressionBombError) as error:
            where = f"picture {number} of {len(pictures)}"
            raise BadInput(f"{where} is damaged: {first_line(error)}") from error
    return tensors


# What Pillow's readers raise on damaged files; EXIF adds the last four.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, TypeError, IndexError)


def _too_large(where: str, most: int, size: tuple[int, int] | None = None) -> str:
    claimed = f" ({size[0]} x {size[1]})" if size else ""
    return f"up to {where}{claimed} they have more than {most:,} pixels together; send fewer or smaller ones"
