"""How a text-to-image pipeline of diffusers is called: what it takes, under which names, and what it draws
with.

Everything is read from the pipeline: its signature, or a modular pipeline's inputs, and its parts. Nothing
here depends on the class, so a pipeline that is new in diffusers is called like the others.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, RenderFailed, Unsupported

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Off wherever a pipeline has it: what rewrites the prompt once more, what draws another size and scales it,
# what depends on whether a package is installed. Video pipelines draw one frame.
_OFF: Mapping[str, Any] = {
    "use_pe": False,
    "enable_prompt_rewrite": False,
    "caption_upsample_temperature": None,
    "prompt_upsampling": False,
    "enhance_prompt": False,
    "complex_human_instruction": None,
    "use_resolution_binning": False,
    "_auto_resize": False,
    "clean_caption": False,
    "num_frames": 1,
}
_DECODERS = ("vae", "vqvae", "movq", "vqgan")
_DENOISERS = ("transformer", "unet", "transformer_2", "unconditional_transformer")
_USUAL_SIDE = 1024


def is_modular(pipe: Any) -> bool:
    """Whether this is one of diffusers' Modular Pipelines, which are made of blocks."""
    return hasattr(pipe, "_blocks")


def parameters(pipe: Any) -> dict[str, Any]:
    """{argument of a call: its default}."""
    if is_modular(pipe):
        return {one.name: one.default for one in blocks(pipe).inputs if one.name}
    return {name: one.default for name, one in inspect.signature(type(pipe).__call__).parameters.items()}


def blocks(pipe: Any) -> Any:
    """A copy of the blocks of a modular pipeline, which shows no progress and does not rewrite the prompt, as
    FLUX 3 does."""
    own = copy.deepcopy(pipe._blocks)
    for name in [name for name, one in own.sub_blocks.items() if "PromptUpsample" in type(one).__name__]:
        own.sub_blocks.pop(name)
    waiting = [own]
    while waiting:
        block = waiting.pop()
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
        waiting += getattr(block, "sub_blocks", {}).values()
    return own


def part(pipe: Any, name: str) -> Any:
    """A component by its name; None if there is none."""
    return getattr(pipe, name, None)


def denoisers(pipe: Any) -> list[Any]:
    """The modules that are evaluated at each step. Raises Unsupported."""
    found = [module for name in _DENOISERS if (module := part(pipe, name)) is not None]
    if not found:
        raise Unsupported(
            f"{type(pipe).__name__} has no denoiser among {', '.join(_DENOISERS)}; let a ComfyUI "
            "workflow draw: --renderer comfyui:WORKFLOW.json@URL"
        )
    return found


def decoder(pipe: Any) -> Any:
    """What makes pictures of latents; None for a pipeline that draws pixels."""
    return next((module for name in _DECODERS if (module := part(pipe, name)) is not None), None)


def decoder_name(pipe: Any) -> str | None:
    return next((name for name in _DECODERS if part(pipe, name) is not None), None)


def multiple(pipe: Any) -> int:
    """Width and height must be multiples of this many pixels."""
    scale = getattr(pipe, "vae_scale_factor", None) or getattr(pipe, "vae_scale_factor_spatial", 8)
    config = denoisers(pipe)[0].config
    if hasattr(pipe, "_unpack_latents"):  # sequences of 2 x 2 patches
        return scale * 2
    patch = config.get("patch_size") or 1
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    if type(pipe).__name__ in ("ZImagePipeline", "Flux2Pipeline", "Flux2KleinPipeline"):
        patch = 2
    if config.get("downsample"):  # aMUSEd
        patch = 2
    # Checked by pipelines with a UNet, and by those that know a list of good sizes.
    eights = "UNet" in type(denoisers(pipe)[0]).__name__ or "use_resolution_binning" in parameters(pipe)
    least = 8 if eights else 1
    return math.lcm(scale * patch, least)


def default_side(pipe: Any) -> int:
    """The side in pixels of the pipeline's own default picture."""
    scale = getattr(pipe, "vae_scale_factor", 8)
    side = getattr(pipe, "default_sample_size", None)
    if side is None:
        side = denoisers(pipe)[0].config.get("sample_size")
    if side is None:
        height = parameters(pipe).get("height")
        return height if isinstance(height, int) else _USUAL_SIDE
    return (side if isinstance(side, int) else side[0]) * scale


def check_size_prepared(pipe: Any, width: int, height: int) -> None:
    """Have the next call of `pipe`, a copy that nobody else uses, raise BadInput where it makes the noise of
    pictures of another size than width x height pixels."""
    own = getattr(pipe, "prepare_latents", None)
    if own is None or not {"width", "height"} <= inspect.signature(own).parameters.keys():
        return
    signature, scale = inspect.signature(own), getattr(pipe, "vae_scale_factor", 1)

    @functools.wraps(own)
    def prepare_latents(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        sides = given["width"], given["height"]
        # Some pass the sides of the latents.
        if sides not in ((width, height), (width // scale, height // scale)):
            check_size_drawn(pipe, sides, (width, height))
        return own(*args, **kwargs)

    pipe.prepare_latents = prepare_latents


def check_size_drawn(pipe: Any, drawn: tuple[int, int], asked: tuple[int, int]) -> None:
    """Raises BadInput for a pipeline that draws another (width, height) than it was asked for."""
    if drawn != asked:
        raise BadInput(
            f"{type(pipe).__name__} does not draw {asked[0]}x{asked[1]}, but {drawn[0]}x{drawn[1]}; give "
            f"--size {drawn[0]}x{drawn[1]}"
        )


def invoke(pipe: Any, arguments: Mapping[str, Any]) -> Tensor | None:
    """One call -> its pictures (B, H, W, 3) in 0..1, float32, on the CPU.

    Raises RenderFailed for a result that is no such pictures.
    """
    import torch

    if is_modular(pipe):
        drawn = pipe(**arguments, output_type="np", output="images")
    else:
        drawn = pipe(**arguments, output_type="np", return_dict=False)[0]
    pictures = torch.from_numpy(drawn) if not isinstance(drawn, torch.Tensor) else drawn
    if pictures.ndim == 5 and pictures.shape[1] == 1:
        pictures = pictures[:, 0]  # the single frame of a video
    if pictures.ndim == 4 and pictures.shape[-1] == 4:  # with transparency: laid on white
        pictures = pictures[..., :3] * pictures[..., 3:] + (1 - pictures[..., 3:])
    if pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise RenderFailed(f"{type(pipe).__name__} gave no pictures, but an array {tuple(pictures.shape)}")
    return pictures.float().cpu()


class CallArguments:
    """The arguments of a pipeline's calls, for checked settings of a renderer."""

    def __init__(self, pipe: Any):
        self.known, self.name = parameters(pipe), type(pipe).__name__
        self.embeds = bool(denoisers(pipe)[0].config.get("guidance_embeds", True))
        self.true_cfg = "true_cfg_scale" in self.known
        self.guider = getattr(pipe, "guider", None) if is_modular(pipe) else None
        self.one_prompt = False  # takes one prompt, from which it draws several pictures (FLUX 3)

    def check_guidance(
        self, guidance: float | None, true_cfg: float | None
    ) -> tuple[float | None, float | None]:
        """The pipeline's guidance_scale and true_cfg_scale to be given; None takes its default. Raises
        BadInput, and Unsupported for a scale that this pipeline does not have."""
        for name, value in (("guidance", guidance), ("true_cfg", true_cfg)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise BadInput(f"{name} is a number of 0 or more; got {value}")
        if not self.true_cfg and true_cfg not in (None, 1.0):
            raise Unsupported(f"{self.name} has no true_cfg; it is guided by guidance={true_cfg}")
        if self.guider is not None:
            return getattr(self.guider, "guidance_scale", None) if guidance is None else guidance, true_cfg
        if not self.guidance_name and guidance is not None:
            other = f"; use true_cfg={guidance}" if self.true_cfg else ""
            raise Unsupported(f"{self.name} takes no guidance{other}")
        if self.true_cfg and true_cfg is None:
            true_cfg = self.known["true_cfg_scale"]
        if self.true_cfg and not self.embeds:
            if guidance is not None:
                raise Unsupported(
                    f"this {self.name} has no guidance embedding (it is distilled, like FLUX "
                    f"schnell, or plain), so guidance={guidance} would do nothing; use true_cfg={guidance}"
                )
            return None, true_cfg
        if guidance is None and self.guidance_name:
            default = self.known[self.guidance_name]
            guidance = default if isinstance(default, (int, float)) else None
        return guidance, true_cfg

    def without_guidance(
        self, guidance: float | None, true_cfg: float | None
    ) -> tuple[float | None, float | None]:
        """(guidance, true_cfg) that leave out guidance where none was asked for."""
        if guidance is None and true_cfg is None:
            if self.guider is not None:
                return 1.0, None
            return (None, 1.0) if self.true_cfg else (0.0 if self.guidance_name else None, None)
        return guidance, true_cfg

    @property
    def guidance_name(self) -> str | None:
        return next((n for n in ("guidance_scale", "distilled_guidance_scale") if n in self.known), None)

    def of(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        *,
        steps: int,
        size: tuple[int, int],
        guidance: float | None,
        true_cfg: float | None,
        negative: str,
        length: int | None,
    ) -> dict[str, Any]:
        """A call for these prompts, each with its generator."""
        given: dict[str, Any] = {
            **_OFF,
            "prompt": list(prompts),
            "num_inference_steps": steps,
            "width": size[0],
            "height": size[1],
            "max_area": size[0] * size[1],  # to which FLUX Kontext would scale its pictures
            "generator": list(generators),
            "num_images_per_prompt": 1,
        }
        if self.one_prompt:
            given |= {"prompt": prompts[0], "num_images_per_prompt": len(prompts)}
        if guidance is not None and self.guidance_name:
            given[self.guidance_name] = guidance
        if true_cfg is not None:
            given["true_cfg_scale"] = true_cfg
        if negative or (self.true_cfg and (true_cfg or 1.0) > 1):
            given["negative_prompt"] = negative if self.one_prompt else [negative] * len(prompts)
        if length is not None:
            given["max_sequence_length"] = length
        if guidance is None and isinstance(schedule := self.known.get("guidance_schedule"), (list, tuple)):
            # A scale for each step (Ideogram 4), for another number of steps.
            given["guidance_schedule"] = [schedule[i * len(schedule) // steps] for i in range(steps)]
        elif guidance is not None:
            given["guidance_schedule"] = None
        if steps != 2:
            given["intermediate_timesteps"] = None  # SANA-Sprint's default is for two steps
        return {name: value for name, value in given.items() if name in self.known}
