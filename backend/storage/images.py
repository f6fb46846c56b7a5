"""Pictures between tensors, PIL and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def to_pil(images: Tensor) -> list[Image]:
    """Images (B, H, W, 3) in 0..1, or grey (B, H, W, 1) -> RGB pictures of 8 bits, as in a PNG."""
    from PIL import Image as images_of

    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:3]:
        shape = tuple(images.shape)
        raise BadInput(f"expected pictures (B, H, W, 3) in 0..1, got shape {shape}; drop an alpha channel")
    pictures = []
    for i, pixels in enumerate(images.detach(), start=1):
        low, high = pixels.aminmax()  # NaN if one of them is
        if not (low.isfinite() and high.isfinite()):
            raise BadInput(
                f"picture {i} of {len(images)} holds pixels that are no numbers (NaN); "
                "a VAE in half precision makes them, run it in float32"
            )
        # In place, one picture at a time: fresh memory for each step costs more than the arithmetic.
        whole = pixels.float().clamp(0, 1).mul_(255).round_().byte().expand(*pixels.shape[:2], 3)
        pictures.append(images_of.fromarray(whole.contiguous().cpu().numpy()))
    return pictures


def from_pil(picture: Image) -> Tensor:
    """A picture of any mode -> (H, W, 3) in 0..1. Grey becomes RGB, what is transparent lies on white, a
    camera's rotation is undone. Raises what Pillow does where the file behind it is damaged."""
    import numpy as np
    import torch
    from PIL import Image as images_of
    from PIL import ImageOps

    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
        grey = np.clip(np.asarray(picture, dtype=np.float32) / 65535, 0, 1)
        return torch.from_numpy(np.repeat(grey[..., None], 3, axis=2))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = images_of.new("RGBA", picture.size, "white")
        picture = images_of.alpha_composite(ground, picture)
    pixels = np.asarray(picture.convert("RGB"))
    return torch.from_numpy(np.divide(pixels, np.float32(255), dtype=np.float32))


def read_picture(path: Path) -> Tensor:
    """A picture file as (H, W, 3) in 0..1, as `from_pil` sees it. Raises BadInput for one that is none."""
    from PIL import Image as images_of
    from PIL import UnidentifiedImageError

    if path.is_dir():
        raise BadInput(f"{path} is a folder; name picture files")
    try:
        with images_of.open(path) as opened:
            return from_pil(opened)
    except FileNotFoundError as error:
        raise BadInput(f"there is no picture {path}") from error
    except UnidentifiedImageError as error:
        raise BadInput(f"{path} is no picture that can be read (PNG, JPEG, WebP, …)") from error
    except (OSError, SyntaxError, ValueError, images_of.DecompressionBombError) as error:
        raise BadInput(f"{path} is damaged: {error}") from error
