"""Pictures converted between tensors, PIL and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


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


def read_picture(path: Path) -> Tensor:
    """A picture file as (H, W, 3) in 0..1; see `from_pil`. Raises BadInput if it is no readable picture."""
    from PIL import Image as images_of
    from PIL import UnidentifiedImageError

    if path.is_dir():
        raise BadInput(f"expected a picture file, got the folder {path}; name picture files")
    try:
        with images_of.open(path) as opened:
            return from_pil(opened)
    except FileNotFoundError as error:
        raise BadInput(f"there is no picture {path}") from error
    except UnidentifiedImageError as error:
        raise BadInput(f"{path} is not a readable picture; expected PNG, JPEG, WebP, …") from error
    except (OSError, SyntaxError, ValueError, images_of.DecompressionBombError) as error:
        raise BadInput(f"{path} is damaged: {error}") from error
