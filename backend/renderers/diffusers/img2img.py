"""Drawing over a picture: diffusers' own image-to-image classes, on the components of the pipeline at hand.

Source: SDEdit (Meng et al. 2022, arXiv 2108.01073): noise is added to the picture up to some step, and taken
away from there; of aMUSEd's pictures tokens are hidden, and filled in again. How a strength is rounded to
steps is diffusers', a little different from family to family.

The picture is encoded, and its noise drawn, for each candidate alone, so that all that `diffusers` says of
seeds, batches and pruning holds here too.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from ...core.errors import BadInput, Unsupported
from ...core.types import Job, check_strength
from .families import FAMILIES, Family


def check_init(jobs: Sequence[Job], pipe: Any, family: Family, steps: int, size: tuple[int, int]) -> None:
    """Refuse pictures to start from that cannot be used. Raises BadInput and Unsupported."""
    inits = [job.init for job in jobs if job.init is not None]
    if not inits:
        return
    if family.img2img is None:
        able = ", ".join(one.name for one in FAMILIES.values() if one.img2img)
        raise Unsupported(
            f"{type(pipe).__name__} is not drawn over a picture here, as {able} are; draw again instead"
        )
    strength = inits[0].strength
    if len(inits) < len(jobs) or any(init.strength != strength for init in inits):
        raise BadInput("jobs drawn at once start all from noise, or all from pictures with one strength")
    check_strength(strength, steps)
    for init in inits:
        height, width = init.image.shape[:2]
        if (width, height) != size:
            raise BadInput(
                f"the picture to start from has {width} x {height} pixels, and what is drawn "
                f"{size[0]} x {size[1]}; give it in that size"
            )


def img2img_of(pipe: Any, family: Family) -> Any:
    """The image-to-image pipeline of the same components, as they stand (`from_pipe` would convert them)."""
    import diffusers

    cls = getattr(diffusers, family.img2img or "")
    wanted = inspect.signature(cls.__init__).parameters
    parts = {name: part for name, part in pipe.components.items() if name in wanted}
    parts |= {name: value for name, value in pipe.config.items() if name in wanted and name not in parts}
    made = cls(**parts)
    made.set_progress_bar_config(disable=True)
    made.maybe_free_model_hooks = lambda: None  # the pipeline at hand does that, afterwards
    return made


def init_arguments(jobs: Sequence[Job]) -> dict[str, Any]:
    """What a call takes more than one that starts from noise."""
    import torch

    inits = [job.init for job in jobs if job.init is not None]
    images = torch.stack([init.image for init in inits]).permute(0, 3, 1, 2)
    return {"image": images, "strength": inits[0].strength}


def left_out(pipe: Any, jobs: Sequence[Job], calls: int) -> int:
    """How many of a scheduler's `calls` a call that starts from the jobs' pictures leaves out."""
    assert jobs[0].init is not None
    known = getattr(pipe, "num_timesteps", None)  # AmusedImg2ImgPipeline has none, and counts so
    return calls - (int(calls * jobs[0].init.strength) if known is None else known)


def accepted(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that the pipeline's call takes: some read the size off the picture."""
    known = inspect.signature(pipe.__call__).parameters
    return {name: value for name, value in arguments.items() if name in known}
