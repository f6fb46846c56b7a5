"""Pictures converted between tensors, PIL and files."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..core.errors import BadInput, first_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MOST_PIXELS = 2**26  # of a picture that is decoded: 8192 x 8192, .8 GB as a tensor


def to_pil(images: Tensor) -> list[Image]:
    """Images (B, H, W, 3) in 0..1, or grey (B, H, W, 1) -> RGB pictures of 8 bits.

    Raises BadInput for another shape, and for pixels that are NaN or infinite.
    """
    from PIL import Image as images_of

    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:3]:
        shape = tuple(images.shape)
        raise BadInput(f"expected pictures (B, H, W, 3) in 0..1, got shape {shape}; remove an alpha channel")
    pictures = []
    for i, pixels in enumerate(images.detach(), start=1):
        low, high = pixels.aminmax()  # NaN if any pixel is
        if not (low.isfinite() and high.isfinite()):
            raise BadInput(
                f"picture {i} of {len(images)} has pixels that are NaN or infinite; a VAE in half precision "
                "can cause this, run it in float32"
            )
        # In place, one picture at a time: allocating memory costs more than the arithmetic.
        whole = pixels.float().clamp(0, 1).mul_(255).round_().byte().expand(*pixels.shape[:2], 3)
        pictures.append(images_of.fromarray(whole.contiguous().cpu().numpy()))
    return pictures


def from_pil(picture: Image) -> Tensor:
    """A picture of any mode -> (H, W, 3) in 0..1.

    Grey becomes RGB, transparent pixels become white, and the rotation in the EXIF data is applied. Raises
    Pillow's errors if the file is damaged.
    """
    import numpy as np
    import torch
    from PIL import Image as images_of
    from PIL import ImageOps

    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        grey = np.clip(np.asarray(picture, dtype=np.float32) / 65535, 0, 1)
        return torch.from_numpy(np.repeat(grey[..., None], 3, axis=2))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = images_of.new("RGBA", picture.size, "white")
        picture = images_of.alpha_composite(ground, picture)
    pixels = np.asarray(picture.convert("RGB"))
    return torch.from_numpy(np.divide(pixels, np.float32(255), dtype=np.float32))


class TooManyPixels(ValueError):
    """The message goes on after the picture's name."""


def check_pixels(picture: Image) -> None:
    """Raises TooManyPixels for more than `MOST_PIXELS`: a small file can claim any size."""
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise TooManyPixels(f"has {width} x {height} pixels; the limit is {MOST_PIXELS:,}")


def decode_picture(source: Path | BinaryIO) -> Tensor:
    """A picture file as (H, W, 3) in 0..1; see `from_pil`.

    Raises ValueError, whose message goes on after the picture's name, for what is no picture, damaged or
    too large, and the system's OSError where the file cannot be read.
    """
    from PIL import Image as images_of
    from PIL import UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large or damaged picture: it is read, or refused here
            with images_of.open(source) as opened:
                check_pixels(opened)
                return from_pil(opened)
    except (TooManyPixels, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ValueError("is not a readable picture; expected PNG, JPEG, WebP, …") from None
    except Exception as error:  # Pillow raises many types for damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"is damaged: {first_line(error)}") from error


def read_picture(path: Path) -> Tensor:
    """A picture file as (H, W, 3) in 0..1; see `from_pil`. Raises BadInput if it is no readable picture."""
    if os.path.isdir(path):
        raise BadInput(f"expected a picture file, got the folder {path}; name picture files")
    try:
        return decode_picture(path)
    except FileNotFoundError as error:
        raise BadInput(f"there is no picture {path}") from error
    except OSError as error:
        raise BadInput(f"cannot read the picture {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path} {error}") from error
