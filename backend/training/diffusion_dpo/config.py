"""Settings of `reprise train diffusion-dpo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ...core.config import Config
from ...core.errors import RepriseError
from ...factory import check_differentiable, check_roles, parse_pipeline
from ...renderers.settings import RendererSettings
from ..common.settings import Batches, Checkpointing, HeldOutShare, Optimisation, Pairs, Run, Scheduler, Steps
from ..rollouts.settings import RoundSettings, check_offload

MARGIN = "margin"  # in place of a reward's name: the difference of the scores that made the pair


class DenoiserLora(Config):
    """The adapter: all that is trained, and all that is written."""

    r: PositiveInt = 16
    """Rank of the adapter; 8 to 32 are usual."""
    alpha: PositiveFloat = 16.0
    """The adapter's output is multiplied by alpha / r; unlike elsewhere it need not be a whole number."""
    targets: Literal["attention", "blocks"] = "attention"
    """attention: the linear layers of the attention. blocks: those of the feed-forward parts as well."""


class JudgeGradient(Config):
    """A judge's score of predicted pictures, in addition to the loss of pairs."""

    reward: str
    """The judge: image-reward, hps-v2.1, pick-score, clip-score, …"""
    weight: PositiveFloat = 0.1
    """Weight of its score, brought to 0..1 by its range. The loss of a pair begins at log 2 = 0.69."""
    until: float = Field(0.5, gt=0, le=1)
    """The judge looks only at pictures in which noise is less than this share; others are too unclear."""

    @model_validator(mode="after")
    def _possible(self) -> JudgeGradient:
        check_differentiable(self.reward)
        return self


class RendererRounds(RoundSettings):
    """Rounds of `reprise train diffusion-dpo`. What draws is the renderer that is trained."""

    images: int = Field(8, ge=2)
    """Pictures of each prompt."""
    pairs: PositiveInt = 1
    """At most that many pairs of a prompt: best with worst, second best with second worst, and so on."""
    eval_images: PositiveInt = 4
    """Pictures of each prompt of an evaluation. Their seeds are the same in all evaluations."""

    def _roles_exist(self) -> RendererRounds:
        """`check` sees to it, which knows what draws."""
        return self

    def check(self, trained: dict[str, Any], reward: str | None, weigh_by: str | None) -> None:
        """Raises ValueError for another renderer than the trained one, a reward that reads rewrites, of which
        there are none, and a judge that no round uses."""
        if self.renderer.name not in (trained["name"], RendererSettings().name):
            raise ValueError(
                f"rounds draw with what is trained, {trained['name']}; leave rounds.renderer.name out"
            )
        for name in ("base", "parts", "comfyui"):
            if getattr(self.renderer, name):
                raise ValueError(f"{name} is that of what is trained; leave rounds.renderer.{name} out")
        if self.renderer.lora:
            raise ValueError("the LoRA that rounds go on from is `start`; leave rounds.renderer.lora out")
        drawn = self.renderer.model_copy(update=trained)
        check_roles(drawn, self.rewards, self.held_out, reads="images")
        if reward is not None:
            raise ValueError("the pairs of rounds are those of rounds.rewards; leave reward out")
        if weigh_by not in (None, MARGIN, *self.rewards, *self.held_out):
            raise ValueError(
                f"no round scores with {weigh_by!r}, the judge of weigh_by; add it to rounds.held_out"
            )


class DiffusionDpoConfig(Pairs, Batches, Steps, HeldOutShare, Optimisation, Run, Checkpointing):
    """Settings of `reprise train diffusion-dpo`."""

    model: str
    """The renderer: a diffusers folder, a hub name, a .safetensors file, or shapeworld, the embedded one."""
    base: str | None = None
    """With a single file: the folder or hub name that configs and missing parts come from."""
    parts: dict[str, Path] = Field(default_factory=dict)
    """With a single file: further files of its pipeline, as --part takes them: {vae: ae.safetensors}."""
    comfyui: Path | None = None
    """With a single file: a ComfyUI's folder, where it and its parts are found."""
    rounds: RendererRounds | None = None
    """Draw and judge the pairs as well, again and again with the newest LoRA. All other settings then hold
    for each round."""
    start: Path | None = None
    """A LoRA file of this trainer to start from, with the same rank and targets. It is the reference, too."""
    size: int | None = Field(None, ge=64)
    """Side of the training pictures in pixels: resized, then cut from the middle. null: as they are."""
    max_sequence_length: PositiveInt | None = None
    """Tokens of text, for renderers without a fixed length; the same as when drawing."""
    guidance: float | None = Field(None, ge=0)
    """The embedded guidance of FLUX dev while training. null: 3.5, or what FLUX.2 draws with."""
    beta: PositiveFloat | None = None
    """How closely the denoiser is held to the reference; larger is closer. null: 5000, or 100 for a flow.
    `losses.diffusion_dpo` gives the convention."""
    weigh_by: str | None = None
    """PARM guidance: weigh each pair by how much this judge prefers its better picture. The name of a reward,
    or margin for the difference that made the pair."""
    judge: JudgeGradient | None = None
    """PARM guidance through a judge's own gradient."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """How the times of the noise are drawn. uniform: evenly. logit_normal: mostly in the middle, as SD3 and
    FLUX were trained."""
    shift: PositiveFloat | None = None
    """Shift of a flow's times towards noise. null: as its pipeline shifts them at this size."""
    lora: DenoiserLora = DenoiserLora()
    """The adapter."""
    max_steps: PositiveInt = 500
    batch_size: PositiveInt = 4
    """Pairs in one forward and backward pass: twice as many pictures."""
    accumulation: PositiveInt = 4
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate; 1e-5 to 3e-4 are usual for a LoRA."""
    scheduler: Scheduler = "constant_with_warmup"
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    eval_share: float = Field(0.0, ge=0, lt=1)
    eval_every: PositiveInt = 50
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the renderer's frozen weights; the adapter is float32. auto: bfloat16 on a GPU that has
    it."""
    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the LoRA in `final/`."""
    save_every: PositiveInt = 50

    @property
    def renderer(self) -> dict[str, Any]:
        """What names the renderer among `RendererSettings`."""
        return {"name": self.model, "base": self.base, "parts": self.parts, "comfyui": self.comfyui}

    @field_validator("model")
    @classmethod
    def _can_be_trained(cls, model: str) -> str:
        try:
            parse_pipeline(model)
        except RepriseError as error:
            raise ValueError(str(error)) from error
        return model

    @model_validator(mode="after")
    def _possible(self) -> DiffusionDpoConfig:
        if (self.preferences is None) == (self.rounds is None):
            raise ValueError("pairs come from a folder, preferences, or from rounds; give one of the two")
        if self.rounds is not None:
            self.rounds.check(self.renderer, self.reward, self.weigh_by)
            check_offload(self.device, self.rounds.offload)
        return self
