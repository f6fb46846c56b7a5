"""The renderer that a training draws with, by its name and settings."""

from __future__ import annotations

from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from ..config import Config
from ..errors import BadInput, UnknownName
from ..registry import RENDERERS, resolve

if TYPE_CHECKING:
    from ..interfaces import Renderer


OF_A_MODEL = {"diffusers", "comfyui"}  # not to be named alone
FIXED = {"size": "SIZE", "max_sequence_length": "TEXT_LENGTH"}  # what a renderer of ours may have of its own


class RendererSettings(Config):
    """What draws while training. What is None is left to the renderer."""

    name: str = "shapeworld"
    """As --renderer takes it: a name of ours, a diffusers folder, a Hugging Face name, a ComfyUI workflow."""
    steps: PositiveInt | None = None
    """Denoising steps; fewer than in use, since a group is compared with itself."""
    size: int | None = Field(default=None, ge=64)
    """Side of a picture in pixels."""
    guidance: float | None = Field(default=None, ge=0)
    """The pipeline's guidance_scale."""
    true_cfg: float | None = Field(default=None, ge=1)
    """FLUX alone: a second evaluation against the empty prompt."""
    max_sequence_length: PositiveInt | None = None
    """Tokens of text that the denoiser reads; short ones are much faster at 512 pixels."""
    lora: Path | None = None
    """A LoRA file of `reprise train diffusion-dpo` for this renderer."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of its weights."""
    offload: Literal["auto", "none", "model", "sequential"] | None = None
    """How a diffusers pipeline spares GPU memory by itself."""
    chunk: PositiveInt | None = None
    """Rows that the denoiser evaluates at once."""
    batch: PositiveInt = 64
    """Pictures asked for in one call."""

    @property
    def elsewhere(self) -> bool:
        """Whether another process draws, so that this one is free meanwhile."""
        return self.name.startswith("comfyui:")


def open_renderer(settings: RendererSettings, device: str = "auto") -> Renderer:
    """One that computes here does so on `device`.

    Raises UnknownName, and BadInput for a setting that this renderer does not have.
    """
    name = settings.name
    given: dict[str, Any] = settings.model_dump(exclude={"name", "batch"}, exclude_defaults=True)
    if name.startswith("comfyui:"):
        from ..renderers.comfyui import parse_name
        from ..renderers.workflow import load_workflow

        _refuse_others(name, given, {"steps"})
        file, urls, names = parse_name(name.partition(":")[2])
        workflow = load_workflow(file, names, settings.steps)
        return resolve("renderer", RENDERERS, "comfyui")(workflow, urls)
    if name in RENDERERS and name not in OF_A_MODEL:
        made = resolve("renderer", RENDERERS, name)
        known = signature(made).parameters
        takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known.values())
        for key, attribute in FIXED.items():  # not to be passed on, where it is the same
            own = getattr(made, attribute, None)
            if own is not None and given.pop(key, own) != own:
                raise BadInput(
                    f"renderer {name!r} draws with {key}={own} alone, got "
                    f"{getattr(settings, key)}; leave it out"
                )
        if not takes_all:
            _refuse_others(name, given, set(known))
        if device != "auto" and (takes_all or "device" in known):
            given["device"] = device
        try:
            return made(**given)
        except TypeError as error:
            raise BadInput(f"renderer {name!r} sets one of {', '.join(given)} by itself: {error}") from error
    if "/" in name or Path(name).is_dir():
        return resolve("renderer", RENDERERS, "diffusers")(name, device=device, **given)
    raise UnknownName("renderer", name, RENDERERS.keys() - OF_A_MODEL)


def _refuse_others(name: str, given: dict[str, Any], known: set[str]) -> None:
    for key in given.keys() - known:
        raise BadInput(f"renderer {name!r} does not take {key}; leave it out of the renderer's settings")
