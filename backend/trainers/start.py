"""How trainings start: settings that cannot be, and the rewriter that is to be trained."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import BadInput, UnknownName
from ..registry import REWARDS, resolve
from ..rewriters.prompting import PLAIN_SYSTEM, SYSTEM
from ..rewriters.reprompt import load_checkpoint
from .lora import LoraSettings, training_dtype

if TYPE_CHECKING:
    from ..rewriters.reprompt import CheckpointSettings


VLM = "vlm:"  # what the name of a judge begins with that any vision-language model can be


class RewriterConfig(Protocol):
    """What the configs of all trainers of rewriters say of its weights and its task."""

    @property
    def reasoning(self) -> bool: ...
    @property
    def system(self) -> str | None: ...
    @property
    def lora(self) -> LoraSettings | None: ...
    @property
    def dtype(self) -> str: ...


def check_rewards(rewards: Iterable[str], held_out: Iterable[str]) -> None:
    """Raises ValueError for rewards that are unknown, or both trained on and held out."""
    for name in (*rewards, *held_out):
        if _kind(name) not in REWARDS:
            raise ValueError(str(UnknownName("reward", name, REWARDS)))
    both = sorted(set(rewards) & set(held_out))
    if both:
        raise ValueError(f"reward {both[0]!r} is trained on and held out; take it out of one of the two")


def open_reward(name: str, device: str = "auto") -> Any:
    """A reward by its name, in the registry or vlm:FOLDER, a judge whose name holds its model's. One that
    computes on a `device` is told which, where it is not "auto"."""
    kind = _kind(name)
    made = resolve("reward", REWARDS, kind)
    given = {"device": device} if device != "auto" and "device" in signature(made).parameters else {}
    return made(**given) if kind == name else made(name.removeprefix(VLM), **given)


def _kind(name: str) -> str:
    return VLM.removesuffix(":") if name.startswith(VLM) else name


def check_schedule(scheduler: str, warmup_ratio: float) -> None:
    """Raises ValueError for a warm-up where there is none."""
    if scheduler == "constant" and warmup_ratio:
        raise ValueError(
            "scheduler 'constant' has no warm-up; set warmup_ratio=0, or scheduler=constant_with_warmup"
        )


def check_precision(device: str, dtype: str, lora: LoraSettings | None) -> None:
    """Raises ValueError for weights that would not keep what is learned."""
    if device == "cpu" and dtype == "bfloat16" and lora is None:
        raise ValueError(
            "full fine-tuning in bfloat16 loses small updates, and a CPU saves no time; set dtype=float32"
        )


def check_offload(device: str, offload: bool) -> None:
    """Raises ValueError for roles that take turns on a GPU that none of them is to use."""
    if device == "cpu" and offload:
        raise ValueError("offload moves roles off the GPU, where device=cpu puts none; take one away")


def load_rewriter(where: str, config: RewriterConfig, gpu: bool) -> tuple[Any, Any, CheckpointSettings, str]:
    """(model, tokenizer that can pad, the checkpoint's settings, system text). Raises CheckpointError."""
    dtype = training_dtype(config.dtype, gpu, config.lora)
    model, tokenizer, settings = load_checkpoint(where, "cuda" if gpu else "cpu", dtype)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer, settings, system_text(config, settings.system, where)


def system_text(config: RewriterConfig, kept: str | None, where: str) -> str:
    """What a rewriter is told: the config's words, else those that it keeps, else ours. Raises BadInput where
    it keeps words that ask for reasons, and is to give none."""
    if config.system is not None:
        return config.system
    if config.reasoning:
        return kept or SYSTEM
    if kept in (None, "", SYSTEM):
        return PLAIN_SYSTEM
    if "<reason>" in kept:
        raise BadInput(
            f"the system text that {where} keeps asks for reasons, and reasoning is false; give "
            "another with system"
        )
    return kept
