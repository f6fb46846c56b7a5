"""RePrompt: a causal language model with a chat template reasons about the scene, then rewrites the prompt.

Source: RePrompt (arXiv 2505.17540).
Departs from it: K variants per prompt, each with its own seed. The first variant is decoded greedily, the
others are sampled, each with its own noise (see `decoding`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError

from ..core.config import validation_message
from ..core.errors import BadInput, CheckpointError, first_line
from ..core.model_files import EMBEDDED_WEIGHTS, quiet_loading, user_path
from ..core.types import Rewrite
from ..storage.checksums import check_folder
from .decoding import CausalLMRewriter, Completion, first_not_none
from .prompting import SYSTEM, prompt_ids
from .rows import read_answer

if TYPE_CHECKING:
    import torch

EMBEDDED_REWRITER = EMBEDDED_WEIGHTS / "rewriter"
SETTINGS = "reprise.json"  # beside config.json: system prompt and sampling settings of the training
S = TypeVar("S", bound=BaseModel)


class CheckpointSettings(BaseModel):
    """`reprise.json`. For values that are None or missing the defaults apply."""

    system: str | None = None
    max_new_tokens: PositiveInt | None = None
    temperature: PositiveFloat | None = None
    top_p: PositiveFloat | None = None


class RePromptRewriter(CausalLMRewriter):
    """A transformers causal LM with the shared prompt builder and parser.

    The first variant is decoded greedily and does not depend on `seed`. The others are sampled at
    `temperature`. Settings left out come from the checkpoint's `reprise.json`, then from the defaults: 512
    new tokens, temperature 0.9 (as in the paper), top_p 1.
    """

    name = "reprompt"

    def __init__(
        self,
        model: str | Path | tuple[Any, Any] | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        batch_size: int = 16,
        system: str | None = None,
    ):
        """`model`: a folder or Hugging Face name, a pair (model, tokenizer), or None for the embedded model.

        `dtype` is the name of a torch dtype; the default is float32 on a CPU, bfloat16 or float16 on a GPU.
        `batch_size` counts rows (prompts x variants). Raises CheckpointError and BadInput.
        """
        import torch

        if isinstance(model, tuple):
            self.model, self.tokenizer = model
            settings = CheckpointSettings()
        else:
            name_or_path = str(model) if model is not None else str(EMBEDDED_REWRITER)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            self.model, self.tokenizer, settings = load_checkpoint(name_or_path, device, dtype)
        self.model.eval()
        if not getattr(self.tokenizer, "chat_template", None):
            prompt_ids(self.tokenizer, "x")  # raises an error that says what to do
        self.system = system or settings.system or SYSTEM
        self.max_new_tokens = first_not_none(max_new_tokens, settings.max_new_tokens, 512)
        self.temperature = first_not_none(temperature, settings.temperature, 0.9)
        self.top_p = first_not_none(top_p, settings.top_p, 1.0)
        self.batch_size = batch_size
        self.check_settings()

    def encode_request(self, prompt: str, critique: str | None) -> list[int]:
        return prompt_ids(self.tokenizer, prompt, critique, self.system)

    def to_rewrite(self, completion: Completion, prompt: str) -> Rewrite:
        limit = f"{self.max_new_tokens} tokens" if completion.truncated else ""
        return read_answer(completion.text, prompt, self.name, limit)

    def _settings(self) -> list[Any]:
        return [self.system, self.max_new_tokens, self.temperature, self.top_p]


def load_checkpoint(
    name_or_path: str, device: str = "cpu", dtype: str | None = None
) -> tuple[Any, Any, CheckpointSettings]:
    """(model, tokenizer, settings in `reprise.json`) of a folder or Hugging Face name.

    Only safetensors are read and no code from the checkpoint is run. Raises CheckpointError if anything is
    missing, truncated, altered since its checksums were stored, of another shape or not a causal LM.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = user_path(name_or_path)
    if os.path.isdir(folder):
        name_or_path = str(folder)
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{name_or_path} is no rewriter: it holds no config.json; give a Hugging Face model folder"
            )
    elif os.path.exists(folder) or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise CheckpointError(
            f"no rewriter at {name_or_path}: expected a model folder or a Hugging Face name; check the path"
        )
    check_folder(folder)
    settings = read_settings(folder / SETTINGS, CheckpointSettings)
    try:
        chosen = getattr(torch, dtype) if dtype else _default_dtype(device)
    except AttributeError as error:
        raise BadInput(f"unknown dtype {dtype!r}; expected float32, bfloat16 or float16") from error
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name_or_path,
                use_safetensors=True,
                trust_remote_code=False,
                torch_dtype=chosen,
                output_loading_info=True,
            )
    except Exception as error:  # transformers, tokenizers and safetensors raise many types
        raise CheckpointError(
            f"cannot load the rewriter {name_or_path}: {first_line(error)}; download or train it again"
        ) from error
    model, info = loaded
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if lacking:
        raise CheckpointError(
            f"the rewriter {name_or_path} lacks {len(lacking)} of its weights or has them in another shape "
            f"(first: {lacking[0]}); download or train it again"
        )
    return model.to(device), tokenizer, settings


def read_settings(path: Path, settings_class: type[S]) -> S:
    """The settings in `reprise.json`, or the defaults if there is no such file. Raises CheckpointError."""
    if not path.is_file():
        return settings_class()
    try:
        return settings_class.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: {validation_message(error)}; train or download the rewriter again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _default_dtype(device: str) -> torch.dtype:
    import torch

    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
