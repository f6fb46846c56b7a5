"""Whether a model was distilled to draw in few steps without guidance, from what it says of itself.

Guided like its teacher, such a model costs twice as much and draws worse; in the teacher's number of steps it
costs ten times as much.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import call

# Schedulers of few-step models: latent consistency, trajectory consistency, sCM, flow maps.
_FEW_STEP = frozenset(
    {
        "LCMScheduler",
        "TCDScheduler",
        "SCMScheduler",
        "FlowMatchLCMScheduler",
        "FlowMapEulerDiscreteScheduler",
    }
)
_WORDS = frozenset({"turbo", "lightning", "schnell", "lcm", "tcd", "dmd", "dmd2", "distilled"})
_STEPS = re.compile(r"(?<![\d.])(\d{1,2})[-_ ]?steps?\b", re.IGNORECASE)
_MOST_STEPS = 12  # of what counts as few
_CARD_CALL = re.compile(
    r"num_inference_steps\s*=\s*(?P<steps>\d+)[^)]{0,300}?"
    r"(?:guidance_scale|true_cfg_scale)\s*=\s*(?P<guidance>[\d.]+)"
    r"|(?:guidance_scale|true_cfg_scale)\s*=\s*(?P<guidance_>[\d.]+)[^)]{0,300}?"
    r"num_inference_steps\s*=\s*(?P<steps_>\d+)"
)


@dataclass(frozen=True)
class Distilled:
    """`steps` are the default ones; `why` says what gave it away."""

    steps: int
    why: str


def distilled(pipe: Any, name: str = "") -> Distilled | None:
    """What is known of a pipeline that needs few steps; None for any other. `name` is what it was opened by:
    a folder, a Hugging Face name or a file."""
    name = Path(name or str(pipe.config.get("_name_or_path") or "")).name
    own = call.parameters(pipe).get("num_inference_steps")
    said = [int(number) for number in _STEPS.findall(name) if int(number) <= _MOST_STEPS]
    usual = said[0] if said else own if isinstance(own, int) and own <= _MOST_STEPS else _usual_steps(pipe)
    card = _card_steps(_folder(pipe))
    if card is not None:
        return Distilled(max(card, usual if said else 4), "the example in its model card says so")
    if pipe.config.get("is_distilled"):
        return Distilled(usual, "its config says is_distilled")
    scheduler = type(pipe.scheduler).__name__
    if scheduler in _FEW_STEP:
        return Distilled(usual, f"its scheduler is {scheduler}")
    if _is_turbo(pipe):
        return Distilled(usual, f"its scheduler is {scheduler} with trailing timesteps")
    if _is_schnell(pipe):
        return Distilled(usual, "it has no guidance embedding and no shifted timesteps, as FLUX schnell")
    words = set(re.findall(r"[a-z]+\d*", name.lower())) & _WORDS
    if words or said:
        return Distilled(usual, f"its name is {name}")
    return None


def _folder(pipe: Any) -> Path | None:
    """The folder that a pipeline was loaded from; None if it was not."""
    folder = pipe.config.get("_name_or_path")
    return Path(folder) if folder and Path(folder).is_dir() else None


def embeds_guidance(pipe: Any) -> bool:
    """Whether the guidance scale is an input of the denoiser, which costs no second evaluation."""
    config = call.denoisers(pipe)[0].config
    return bool(config.get("guidance_embeds")) or config.get("time_cond_proj_dim") is not None


def _usual_steps(pipe: Any) -> int:
    name = type(pipe).__name__
    # Turbo, Lightning and LCM of these were made for 1 to 4 steps, those of newer flows for 8.
    return 4 if name.startswith(("StableDiffusion", "Flux", "Latent")) else 8


def _is_turbo(pipe: Any) -> bool:
    """SD-Turbo, SDXL-Turbo and SDXL-Lightning: Euler steps with trailing timesteps, which models with a zero
    terminal signal-to-noise ratio have, too; those are guided, and predict v."""
    config = pipe.scheduler.config
    return (
        type(pipe.scheduler).__name__ in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
        and config.get("timestep_spacing") == "trailing"
        and config.get("prediction_type") == "epsilon"
        and not config.get("rescale_betas_zero_snr")
    )


def _is_schnell(pipe: Any) -> bool:
    scheduler = pipe.scheduler.config
    return (
        type(pipe).__name__ == "FluxPipeline"
        and not call.denoisers(pipe)[0].config.get("guidance_embeds")
        and not scheduler.get("use_dynamic_shifting")
        and scheduler.get("shift") == 1.0
    )


def _card_steps(folder: Path | None) -> int | None:
    """The steps of the first example in a folder's model card, if it draws in few steps without guidance."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace") if folder else ""
    except OSError:
        return None
    found = _CARD_CALL.search(text)
    if found is None:
        return None
    steps = int(found["steps"] or found["steps_"])
    try:
        guidance = float(found["guidance"] or found["guidance_"])
    except ValueError:
        return None
    return steps if 1 <= steps <= _MOST_STEPS and guidance <= 1 else None
