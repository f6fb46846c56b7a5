"""Image to image with diffusers' own classes, on the components of a loaded pipeline.

Source: SDEdit (Meng et al. 2022, arXiv 2108.01073): noise is added to the picture up to some step, then
removed from there; in aMUSEd's pictures tokens are masked and sampled again. diffusers rounds a strength to
steps, slightly differently in each family.

The picture is encoded, and its noise drawn, for each candidate separately. So everything that `renderer.py`
says about seeds, batches and pruning holds here too.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from ...core.errors import BadInput, Unsupported
from ...core.types import Job, check_strength
from .call import is_modular, parameters


def img2img_class(pipe: Any) -> type | None:
    """diffusers' class that draws over a picture with the parts of `pipe`; None if there is none.

    It has the name of the text-to-image class with Img2Img in it, and takes a strength. (Classes with an
    `image` argument and no strength show the picture to the model instead, as FLUX.2 does.)
    """
    import diffusers

    if is_modular(pipe):
        return None
    for base in type(pipe).__mro__:
        found = getattr(diffusers, base.__name__.removesuffix("Pipeline") + "Img2ImgPipeline", None)
        if found is not None and "strength" in inspect.signature(found.__call__).parameters:
            return found
    return None


def check_init(
    jobs: Sequence[Job], pipe: Any, img2img: type | None, steps: int, size: tuple[int, int]
) -> None:
    """Checks the jobs' init images. Raises BadInput, and Unsupported for a pipeline without image to
    image."""
    inits = [job.init for job in jobs if job.init is not None]
    if not inits:
        return
    if img2img is None:
        raise Unsupported(
            f"{type(pipe).__name__} cannot draw over a picture: diffusers has no image-to-image class "
            "for it; draw again instead (--correction draw-again)"
        )
    strength = inits[0].strength
    if len(inits) < len(jobs) or any(init.strength != strength for init in inits):
        raise BadInput("jobs of one call must all start from noise, or all from pictures with one strength")
    check_strength(strength, steps)
    for init in inits:
        height, width = init.image.shape[:2]
        if (width, height) != size:
            raise BadInput(
                f"the picture to start from has {width} x {height} pixels, expected "
                f"{size[0]} x {size[1]}; resize it"
            )


def img2img_pipeline(pipe: Any, img2img: type) -> Any:
    """The image-to-image pipeline of the same components, unchanged (`from_pipe` would convert them)."""
    known = inspect.signature(img2img.__init__).parameters
    parts = {name: part for name, part in pipe.components.items() if name in known}
    parts |= {name: value for name, value in pipe.config.items() if name in known and name not in parts}
    pipeline: Any = img2img(**parts)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.maybe_free_model_hooks = lambda: None  # the original pipeline does that afterwards
    return pipeline


def init_arguments(jobs: Sequence[Job]) -> dict[str, Any]:
    """The additional arguments of a call that starts from the jobs' pictures: images (B, 3, H, W),
    strength."""
    import torch

    inits = [job.init for job in jobs if job.init is not None]
    images = torch.stack([init.image for init in inits]).permute(0, 3, 1, 2)
    return {"image": images, "strength": inits[0].strength}


def skipped_calls(pipe: Any, jobs: Sequence[Job], calls: int) -> int:
    """How many of a scheduler's `calls` image to image skips, once the pipeline has set its timesteps."""
    assert jobs[0].init is not None
    drawn = getattr(pipe, "num_timesteps", None)  # AmusedImg2ImgPipeline has no such attribute
    return calls - (int(calls * jobs[0].init.strength) if drawn is None else drawn)


def accepted_arguments(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The `arguments` that the pipeline's call accepts: some pipelines take the size from the picture."""
    known = parameters(pipe)
    return {name: value for name, value in arguments.items() if name in known}
