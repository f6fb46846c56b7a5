"""How trainings start: settings that cannot be, and the rewriter that is to be trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput
from ...rewriters.prompting import PLAIN_SYSTEM, SYSTEM
from ...rewriters.reprompt import load_checkpoint
from .lora import training_dtype
from .settings import RewriterTraining

if TYPE_CHECKING:
    from ...rewriters.reprompt import CheckpointSettings


def load_rewriter(
    where: str, config: RewriterTraining, gpu: bool
) -> tuple[Any, Any, CheckpointSettings, str]:
    """(model, tokenizer that can pad, the checkpoint's settings, system text). Raises CheckpointError."""
    dtype = training_dtype(config.dtype, gpu, config.lora)
    model, tokenizer, settings = load_checkpoint(where, "cuda" if gpu else "cpu", dtype)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer, settings, system_text(config, settings.system, where)


def system_text(config: RewriterTraining, kept: str | None, where: str) -> str:
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


MAX_LOST = 0.1  # share of the records that may be unusable; beyond it a run is refused


def check_lost(lost: int, of: int, what: str, why: str, remedy: str, log: Callable[[str], None]) -> None:
    """Say how many records are left out. Raises BadInput where they are too many, or all."""
    if lost > MAX_LOST * of or lost == of:
        raise BadInput(f"{lost} of {of} of {what} {why}; {remedy}")
    if lost:
        log(f"left out {lost} of {of} of {what}: they {why}")
