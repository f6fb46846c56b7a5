"""Names of the four roles' implementations, resolved lazily.

To add one: write its file in the role's folder and one line here, name -> "module:Class". The
command line, the nodes' drop-downs and the contract tests then have it. Nothing is imported before
it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import UnknownName

REWRITERS: dict[str, str] = {
    "none": ".rewriters.template:KeepPrompt",
    "template": ".rewriters.template:TemplateRewriter",
    "reprompt": ".rewriters.reprompt:RePromptRewriter",
    "chat": ".rewriters.chat:ChatRewriter",
    "prip": ".rewriters.prip:PripRewriter",
    "promptist": ".rewriters.promptist:PromptistRewriter",
}
RENDERERS: dict[str, str] = {
    "shapeworld": ".renderers.shapeworld:ShapeWorldRenderer",
    "shapeworld-sd": ".renderers.shapeworld:ShapeWorldSDRenderer",
    "shapeworld-masked": ".renderers.shapeworld:ShapeWorldMaskedRenderer",
    "shapeworld-styled": ".renderers.shapeworld:StyledRenderer",
    "shapeworld-sd-styled": ".renderers.shapeworld:StyledSDRenderer",
    "diffusers": ".renderers.diffusers:DiffusersRenderer",
    "comfyui": ".renderers.comfyui:ComfyUIRenderer",
    "fake": ".renderers.fake:FakeRenderer",
}
REWARDS: dict[str, str] = {
    "shapeworld": ".rewards.shapeworld:ShapeWorldSoft",
    "shapeworld-strict": ".rewards.shapeworld:ShapeWorldStrict",
    "shapeworld-preference": ".rewards.shapeworld_preference:ShapeWorldPreference",
    "image-reward": ".rewards.image_reward:ImageReward",
    "hps-v2.1": ".rewards.hps:HPSv21",
    "hps-v2": ".rewards.hps:HPSv2",
    "pick-score": ".rewards.pick_score:PickScore",
    "clip-score": ".rewards.clip_score:ClipScore",
    "aesthetic": ".rewards.aesthetic:Aesthetic",
    "vlm": ".rewards.vlm:vlm_judge",
    "geneval": ".rewards.geneval:GenEval",
    "geneval-strict": ".rewards.geneval:GenEvalStrict",
    "structure": ".rewards.text:Structure",
    "length": ".rewards.text:Length",
}
TRAINERS: dict[str, str] = {
    "sft": ".trainers.sft:train",
    "grpo": ".trainers.grpo:train",
    "dpo": ".trainers.dpo:train",
    "judge": ".trainers.judge:train",
    "diffusion-dpo": ".trainers.diffusion_dpo:train",
    "ppo": ".trainers.ppo:train",
    "prip-decoder": ".trainers.prip_decoder:train",
    "prip-encoder": ".trainers.prip_encoder:train",
}


def resolve(kind: str, table: dict[str, str], name: str) -> Any:
    """The class (or function) behind `name`; `kind` is the word for it in the error."""
    if name not in table:
        raise UnknownName(kind, name, table)
    module, attribute = table[name].split(":")
    return getattr(import_module(module, __package__), attribute)
