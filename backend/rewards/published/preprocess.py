"""The preference models' own image preprocessing, with PIL and torch alone.

Sources: torchvision's Resize and CenterCrop on PIL pictures (openai/CLIP, image-reward 1.5), transformers'
CLIPImageProcessor (PickScore), `ResizeMaxSize` of hpsv2 1.2.0 on tensors. They differ in how they round the
start of a crop with an odd margin, which changes a score by up to two points, and in whether they resize
bytes or floats.
Departs from them: a side that would become 0 becomes 1. A picture whose longest side already fits is padded
too; hpsv2 leaves it unpadded and fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
EXTREME = 16  # from this ratio of sides on, only the part that the crop keeps is resized


def center_crop(picture: Image, size: int, floor: bool = False) -> Tensor:
    """Shortest side to `size` by PIL's bicubic filter, then the middle -> (3, size, size), normalised.

    If the margin is odd, the crop starts at half of it, rounded to even (torchvision) or, with `floor`,
    rounded down (transformers).
    """
    from PIL.Image import Resampling

    width, height = picture.size
    short = min(width, height)
    wide, high = int(size * width / short), int(size * height / short)
    left, top = (((side - size) // 2 if floor else round((side - size) / 2)) for side in (wide, high))
    if max(wide, high) > EXTREME * size:  # the whole strip may take gigabytes; the part differs by rounding
        x, y = width / wide, height / high
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        return _normalised(_tensor(picture.resize((size, size), Resampling.BICUBIC, box=box)))
    resized = picture.resize((wide, high), Resampling.BICUBIC)
    return _normalised(_tensor(resized.crop((left, top, left + size, top + size))))


def pad_to_square(picture: Image, size: int) -> Tensor:
    """Longest side to `size` by torch's bicubic filter, padded with black -> (3, size, size), normalised."""
    from torch.nn import functional

    pixels = _tensor(picture)
    scale = size / float(max(picture.size))
    high, wide = (max(1, round(side * scale)) for side in pixels.shape[1:])
    if scale != 1.0:
        pixels = functional.interpolate(
            pixels[None], size=(high, wide), mode="bicubic", align_corners=False, antialias=True
        )[0]
    left, top = (size - wide) // 2, (size - high) // 2
    return _normalised(functional.pad(pixels, (left, size - wide - left, top, size - high - top)))


def _tensor(picture: Image) -> Tensor:
    """(3, H, W) in 0..1."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(255)


def _normalised(pixels: Tensor) -> Tensor:
    import torch

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std
