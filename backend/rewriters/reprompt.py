"""RePrompt: any causal language model with a chat template rehearses the scene, then rewrites the prompt.

Source: RePrompt (arXiv 2505.17540). Departs from it: K variants a prompt, each with its own seed.

The first variant is greedy, the others are drawn, each with noise of its own (`decoding`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError

from ..core.config import validation_message
from ..core.errors import BadInput, CheckpointError, first_line
from ..core.model_files import EMBEDDED_WEIGHTS, quiet_loading
from ..core.types import Rewrite
from .decoding import AskingRewriter, Written, given
from .prompting import SYSTEM, prompt_ids
from .rows import read_answer

if TYPE_CHECKING:
    import torch

EMBEDDED_REWRITER = EMBEDDED_WEIGHTS / "rewriter"
SETTINGS = "reprise.json"  # beside config.json: how the checkpoint was trained to be asked
S = TypeVar("S", bound=BaseModel)


class CheckpointSettings(BaseModel):
    """`reprise.json`; what is None there or missing is left to the defaults."""

    system: str | None = None
    max_new_tokens: PositiveInt | None = None
    temperature: PositiveFloat | None = None
    top_p: PositiveFloat | None = None


class RePromptRewriter(AskingRewriter):
    """A transformers causal LM behind the one prompt builder and parser.

    The first variant is written greedily, and `seed` changes nothing in it; the others are sampled at
    `temperature`. Settings not given come from the checkpoint's `reprise.json`, then from the defaults: 512
    new tokens, temperature 0.9 (the paper's), top_p 1.
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
        """`model`: a folder or hub name, (model, tokenizer), or None for the embedded one.

        `dtype` is a torch name; by default float32 on a CPU, bfloat16 or float16 on a GPU.
        `batch_size` counts rows, prompts x variants. Raises CheckpointError and BadInput.
        """
        import torch

        if isinstance(model, tuple):
            self.model, self.tokenizer = model
            settings = CheckpointSettings()
        else:
            where = str(model) if model is not None else str(EMBEDDED_REWRITER)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            self.model, self.tokenizer, settings = load_checkpoint(where, device, dtype)
        self.model.eval()
        if not getattr(self.tokenizer, "chat_template", None):
            prompt_ids(self.tokenizer, "x")  # raises with the remedy
        self.system = system or settings.system or SYSTEM
        self.max_new_tokens = given(max_new_tokens, settings.max_new_tokens, 512)
        self.temperature = given(temperature, settings.temperature, 0.9)
        self.top_p = given(top_p, settings.top_p, 1.0)
        self.batch_size = batch_size
        self.check()

    def question(self, prompt: str, critique: str | None) -> list[int]:
        return prompt_ids(self.tokenizer, prompt, critique, self.system)

    def read(self, written: Written, prompt: str) -> Rewrite:
        limit = f"{self.max_new_tokens} tokens" if written.cut else ""
        return read_answer(written.text, prompt, self.name, limit)

    def _settings(self) -> list[Any]:
        return [self.system, self.max_new_tokens, self.temperature, self.top_p]


def load_checkpoint(
    where: str, device: str = "cpu", dtype: str | None = None
) -> tuple[Any, Any, CheckpointSettings]:
    """(model, tokenizer, settings of `reprise.json`) of a folder or hub name; safetensors, no remote code.

    Raises CheckpointError where anything is missing, truncated, of another shape or not a causal LM.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(where).expanduser()
    if folder.is_dir():
        where = str(folder)
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{where} is no rewriter: it holds no config.json; give a Hugging Face model folder"
            )
    elif folder.exists() or where.startswith((".", "/", "~")) or where.count("/") > 1:
        raise CheckpointError(f"no rewriter at {where}: expected a model folder or a hub name")
    settings = read_settings(folder / SETTINGS, CheckpointSettings)
    try:
        chosen = getattr(torch, dtype) if dtype else _default_dtype(device)
    except AttributeError as error:
        raise BadInput(f"unknown dtype {dtype!r}; expected float32, bfloat16 or float16") from error
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where,
                use_safetensors=True,
                trust_remote_code=False,
                torch_dtype=chosen,
                output_loading_info=True,
            )
    except Exception as error:  # transformers, tokenizers and safetensors raise a dozen kinds
        raise CheckpointError(
            f"cannot load the rewriter {where}: {first_line(error)}; fetch or train it again"
        ) from error
    model, info = loaded
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if lacking:
        raise CheckpointError(
            f"the rewriter {where} lacks {len(lacking)} of its weights or has them in another shape "
            f"(first: {lacking[0]}); fetch or train it again"
        )
    return model.to(device), tokenizer, settings


def read_settings(path: Path, kind: type[S]) -> S:
    """What `reprise.json` says; where there is none, the defaults. Raises CheckpointError."""
    if not path.is_file():
        return kind()
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: {validation_message(error)}; train or fetch the rewriter again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _default_dtype(device: str) -> torch.dtype:
    import torch

    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
