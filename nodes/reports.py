"""What the views in the browser are told beside the numbers: the judge's range, small pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..backend.core.types import RewardSpec

THUMBNAIL = 256  # pixels on the longer side


def score_scale(spec: RewardSpec) -> dict[str, Any]:
    """Which way a judge counts and its usual range; None for an open end, as JSON has no infinity."""
    low, high = (float(end) if math.isfinite(end) else None for end in (spec.low, spec.high))
    return {"higher_is_better": spec.higher_is_better, "low": low, "high": high}


def save_thumbnail(picture: Tensor) -> dict[str, str]:
    """Saves a picture (1, H, W, 3) small among ComfyUI's temporary ones; what `/view` finds it by."""
    import comfy.utils
    from comfy_api.latest import ui

    height, width = picture.shape[1:3]
    smaller = min(1.0, THUMBNAIL / max(height, width))
    size = [max(1, round(side * smaller)) for side in (width, height)]
    small = comfy.utils.common_upscale(picture.movedim(-1, 1), *size, "area", "disabled").movedim(1, -1)
    return dict(ui.PreviewImage(small.clamp(0, 1)).values[0])


class LiveReport:
    """A report that grows with the rounds of an expanding node.

    ComfyUI keeps what a node returned as `ui` when it expanded, and sends just that when the node is next
    found in the cache: what the nodes of the expansion return is not kept for it. So the expanding node
    returns `shown` and hands this object to its rounds, which complete the same dictionary. It goes along as
    a plain object: ComfyUI cannot hash it, so no round of an earlier expansion stands in for a new one and
    leaves the report unfinished.
    """

    def __init__(self, **shown: Any):
        self.shown: dict[str, Any] = shown
