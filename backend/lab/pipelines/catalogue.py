"""The text-to-image pipeline classes of the installed diffusers, found by looking at each class, and why some
are not drawn here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

# A call ends by returning one of these classes or fields; those that hold pictures.
_RETURNED = re.compile(r"return (\w*Output)\((\w+)[=)]")
_ON_PICTURES = re.compile(
    "Edit|Refiner|Upscale|SuperResolution|Pix2Pix|Layered|GLIGENTextImage|Inpaint|Img2Img|Omni"
)
_SEVERAL_STAGES = ("prior_prior", "prior")
# What cannot be read from a class.
_REASONS = {
    "OmniGenPipeline": "needs the package torchvision",
    "GlmImagePipeline": "a language model draws tokens first; no tiny one here",
    "TextToVideoZeroPipeline": "draws a video",
    "TextToVideoZeroSDXLPipeline": "draws a video",
    "HeliosPipeline": "draws a video",
    "HeliosPyramidPipeline": "draws a video",
    "KolorsPipeline": "its text encoder ChatGLM has no small config here",
    "KolorsPAGPipeline": "its text encoder ChatGLM has no small config here",
}


def classes() -> dict[str, type]:
    """{name: class} of each pipeline class that draws pictures of a prompt: those of
    AutoPipelineForText2Image, and every other with a `prompt`, nothing else that must be given, and pictures
    as its result."""
    import diffusers
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    found: dict[str, type] = {one.__name__: one for one in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    for name in dir(diffusers):
        if name.endswith("Pipeline") and name not in found:
            made = getattr(diffusers, name)
            if isinstance(made, type) and issubclass(made, diffusers.DiffusionPipeline) and _draws(made):
                found[name] = made
    return dict(sorted(found.items()))


def why_not(made: type) -> str:
    """Why a class of `classes` has no tiny pipeline here."""
    parts = inspect.signature(made.__init__).parameters
    name = made.__name__
    if name in _REASONS:
        return _REASONS[name]
    if "controlnet" in parts or "adapter" in parts or "control" in name.lower():
        return "needs a control picture"
    if _ON_PICTURES.search(name):
        return "works on a picture that is given"
    if any(part in parts for part in _SEVERAL_STAGES):
        return "several stages, each with a denoiser and a scheduler"
    if ".deprecated." in made.__module__:
        return "deprecated by diffusers"
    return "no tiny one here"


def _draws(made: type) -> bool:
    call = inspect.signature(made.__call__).parameters
    needed = [
        name
        for name, one in call.items()
        if one.default is inspect.Parameter.empty and name not in ("self", "prompt", "args", "kwargs")
    ]
    if "prompt" not in call or needed or "strength" in call or ".experimental" in made.__module__:
        return False
    return any(
        field == "images" or kind.startswith("ImagePipeline") for kind, field in _results(made)
    ) or _is_text_to_image_by_name(made)


def _is_text_to_image_by_name(made: type) -> bool:
    """WanPipeline draws a picture as a video of one frame."""
    return made.__name__ == "WanPipeline"


def _results(made: type) -> Iterator[tuple[str, str]]:
    for base in made.__mro__:
        if "__call__" in vars(base):
            function = inspect.unwrap(vars(base)["__call__"])
            yield from _RETURNED.findall(inspect.getsource(function))
            return
