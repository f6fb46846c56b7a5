"""Names of the four roles' implementations, resolved lazily, by `factory` alone.

To add one, write its file in the role's folder and one line here, name -> "module:Class". The command line,
the nodes' drop-downs and the contract tests then include it. A module is imported when its name is resolved.
Some lines need a model behind the name: diffusers, comfyui, chat, promptist, vlm, remote.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import UnknownName

BACKEND = __name__.rpartition(".core.")[0]  # what the modules below are relative to

REWRITERS: dict[str, str] = {
    "none": ".rewriters.template:KeepPrompt",
    "template": ".rewriters.template:TemplateRewriter",
    "reprompt": ".rewriters.reprompt:RePromptRewriter",
    "chat": ".rewriters.chat:ChatRewriter",
    "prip": ".rewriters.prip.rewriter:PripRewriter",
    "promptist": ".rewriters.promptist:PromptistRewriter",
}
RENDERERS: dict[str, str] = {
    "shapeworld": ".renderers.shapeworld:ShapeWorldRenderer",
    "shapeworld-sd": ".renderers.shapeworld:ShapeWorldSDRenderer",
    "shapeworld-masked": ".renderers.shapeworld:ShapeWorldMaskedRenderer",
    "shapeworld-turbo": ".renderers.shapeworld:ShapeWorldTurboRenderer",
    "shapeworld-styled": ".renderers.shapeworld:StyledRenderer",
    "shapeworld-sd-styled": ".renderers.shapeworld:StyledSDRenderer",
    "diffusers": ".renderers.diffusers.renderer:DiffusersRenderer",
    "comfyui": ".renderers.comfyui.renderer:ComfyUIRenderer",
    "fake": ".renderers.fake:FakeRenderer",
}
REWARDS: dict[str, str] = {
    "shapeworld": ".rewards.shapeworld:ShapeWorldSoft",
    "shapeworld-strict": ".rewards.shapeworld:ShapeWorldStrict",
    "shapeworld-preference": ".rewards.shapeworld_preference:ShapeWorldPreference",
    "image-reward": ".rewards.published.image_reward:ImageReward",
    "hps-v2.1": ".rewards.published.hps:HPSv21",
    "hps-v2": ".rewards.published.hps:HPSv2",
    "pick-score": ".rewards.published.pick_score:PickScore",
    "clip-score": ".rewards.published.clip_score:ClipScore",
    "aesthetic": ".rewards.published.aesthetic:Aesthetic",
    "vlm": ".rewards.vlm.judge:vlm_judge",
    "geneval": ".rewards.geneval.judge:GenEval",
    "geneval-strict": ".rewards.geneval.judge:GenEvalStrict",
    "remote": ".rewards.remote:connect",
}
TEXT_REWARDS: dict[str, str] = {  # these read rewrites, not pictures
    "structure": ".rewards.text:Structure",
    "length": ".rewards.text:Length",
}
TRAINERS: dict[str, str] = {
    "sft": ".training.sft.train:train",
    "grpo": ".training.grpo.train:train",
    "dpo": ".training.dpo.train:train",
    "judge": ".training.judge.train:train",
    "diffusion-dpo": ".training.diffusion_dpo.train:train",
    "ppo": ".training.ppo.train:train",
    "prip-decoder": ".training.prip.decoder:train",
    "prip-encoder": ".training.prip.encoder:train",
}


def resolve(kind: str, table: dict[str, str], name: str) -> Any:
    """The class or function registered as `name`. `kind` is the word for it in the error.

    Raises UnknownName.
    """
    if name not in table:
        raise UnknownName(kind, name, table)
    module, attribute = table[name].split(":")
    return getattr(import_module(module, BACKEND), attribute)
