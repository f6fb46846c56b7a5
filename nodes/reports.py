"""Data for the views in the browser: a judge's range, thumbnails, reports that grow while a node runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..backend.core.types import RewardSpec

THUMBNAIL = 256  # pixels on the longer side


def score_scale(spec: RewardSpec) -> dict[str, Any]:
    """A judge's direction and usual range; None for an infinite end, which JSON cannot hold."""
    low, high = (float(end) if math.isfinite(end) else None for end in (spec.low, spec.high))
    return {"higher_is_better": spec.higher_is_better, "low": low, "high": high}


def save_thumbnail(picture: Tensor) -> dict[str, str]:
    """Save a picture (1, H, W, 3) as a small temporary file of ComfyUI; returns the parameters of `/view`."""
    import comfy.utils
    from comfy_api.latest import ui

    height, width = picture.shape[1:3]
    smaller = min(1.0, THUMBNAIL / max(height, width))
    size = [max(1, round(side * smaller)) for side in (width, height)]
    small = comfy.utils.common_upscale(picture.movedim(-1, 1), *size, "area", "disabled").movedim(1, -1)
    return dict(ui.PreviewImage(small.clamp(0, 1)).values[0])


class LiveReport:
    """A report that grows with the rounds of an expanding node.

    ComfyUI caches the `ui` that a node returned when it expanded, and sends only that when the node comes
    from the cache; the `ui` of the nodes of its expansion is lost. So the expanding node returns `shown` and
    passes this object to its rounds, which complete the same dictionary.

    It is passed as a plain object, which ComfyUI cannot hash. So no cached round of an earlier expansion
    replaces a new one, which would leave the report incomplete.
    """

    def __init__(self, **shown: Any):
        self.shown: dict[str, Any] = shown
