"""The rewriter that a training starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput
from ...rewriters.prompting import PLAIN_SYSTEM, SYSTEM
from ...rewriters.reprompt import EMBEDDED_REWRITER, load_checkpoint
from .lora import training_dtype
from .settings import RewriterTraining

if TYPE_CHECKING:
    from ...rewriters.reprompt import CheckpointSettings


def rewriter_folder(model: str) -> str:
    """The folder or hub name of the setting `model`."""
    return str(EMBEDDED_REWRITER) if model == "shapeworld" else model


def load_rewriter(
    model: str, config: RewriterTraining, gpu: bool
) -> tuple[Any, Any, CheckpointSettings, str]:
    """(model, tokenizer that can pad, the checkpoint's settings, system text). Raises CheckpointError."""
    where, dtype = rewriter_folder(model), training_dtype(config.dtype, gpu, config.lora)
    weights, tokenizer, settings = load_checkpoint(where, "cuda" if gpu else "cpu", dtype)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return weights, tokenizer, settings, system_text(config, settings.system, where)


def system_text(config: RewriterTraining, stored: str | None, where: str) -> str:
    """The system text: the config's, else the one `stored` with the checkpoint `where`, else the default.

    Raises BadInput where the stored one asks for reasons and the config wants none.
    """
    if config.system is not None:
        return config.system
    if config.reasoning:
        return stored or SYSTEM
    if stored in (None, "", SYSTEM):
        return PLAIN_SYSTEM
    if "<reason>" in stored:
        raise BadInput(
            f"the system text stored with {where} asks for reasons, and reasoning is false; give "
            "another with system"
        )
    return stored
