"""RePrompt: any causal language model with a chat template rehearses the scene, then rewrites the prompt.

Source: RePrompt (arXiv 2505.17540). Departs from it: K variants a prompt, each with its own seed.

The first variant is greedy, the others are sampled, by Gumbel's trick: argmax(log p + g) with g from a
generator of the row's own is an exact draw from p. The generator is seeded with (seed, prompt, critique,
variant), so a rewrite does not depend on its neighbours in the batch, and variant 2 of 3 is variant 2 of
8. What is left is floating point: batch shape and padding move logits by about 1e-6 in float32 (1e-2 in
bfloat16), which turns a token only where two are that close. `batch_size=1` removes that too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError

from ..config import one_line
from ..errors import BadInput, CheckpointError, Interrupted, first_line
from ..loading import quiet_loading
from ..types import Rewrite
from .prompting import SYSTEM, prompt_ids
from .rows import check_request, kept, read_answer, row_seed

if TYPE_CHECKING:
    import torch

EMBEDDED = Path(__file__).parent.parent / "shapeworld" / "weights" / "rewriter"
SETTINGS = "reprise.json"  # beside config.json: how the checkpoint was trained to be asked


class CheckpointSettings(BaseModel):
    """`reprise.json`; what is None there or missing is left to the defaults."""

    system: str | None = None
    max_new_tokens: PositiveInt | None = None
    temperature: PositiveFloat | None = None
    top_p: PositiveFloat | None = None


@dataclass(frozen=True)
class Written:
    """One row that a model wrote: `ids` with the token that ends the turn, unless it was `cut` off by the
    limit, and the log-probability of each under the distribution that it was drawn from."""

    text: str
    ids: list[int]
    logps: list[float]
    cut: bool


class RePromptRewriter:
    """A transformers causal LM behind the one prompt builder and parser.

    The first variant is written greedily, and `seed` changes nothing in it; the others are sampled at
    `temperature`. Settings not given come from the checkpoint's `reprise.json`, then from the defaults: 512
    new tokens, temperature 0.9 (the paper's), top_p 1.
    """

    name = "reprompt"

    def __init__(self, model: str | Path | tuple[Any, Any] | None = None, *, device: str | None = None,
                 dtype: str | None = None, max_new_tokens: int | None = None,
                 temperature: float | None = None, top_p: float | None = None, batch_size: int = 16,
                 system: str | None = None):
        """`model`: a folder or hub name, (model, tokenizer), or None for the embedded one.

        `dtype` is a torch name; by default float32 on a CPU, bfloat16 or float16 on a GPU.
        `batch_size` counts rows, prompts x variants. Raises CheckpointError and BadInput.
        """
        import torch

        if isinstance(model, tuple):
            self.model, self.tokenizer = model
            settings = CheckpointSettings()
        else:
            where = str(model) if model is not None else str(EMBEDDED)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            self.model, self.tokenizer, settings = load_checkpoint(where, device, dtype)
        self.model.eval()
        if not getattr(self.tokenizer, "chat_template", None):
            prompt_ids(self.tokenizer, "x")  # raises with the remedy
        self.system = system or settings.system or SYSTEM
        self.max_new_tokens = _first(max_new_tokens, settings.max_new_tokens, 512)
        self.temperature = _first(temperature, settings.temperature, 0.9)
        self.top_p = _first(top_p, settings.top_p, 1.0)
        self.batch_size = batch_size
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or batch_size < 1 or self.max_new_tokens < 1:
            raise BadInput(
                "expected temperature > 0, 0 < top_p <= 1, batch_size >= 1 and max_new_tokens >= 1, got "
                f"{self.temperature}, {self.top_p}, {batch_size}, {self.max_new_tokens}"
            )

    def rewrite(self, prompts: Sequence[str], variants: int = 1, seed: int = 0,
                critiques: Sequence[str | None] | None = None, *,
                should_stop: Callable[[], bool] | None = None,
                progress: Callable[[int, int], None] | None = None) -> list[list[Rewrite]]:
        """`variants` rewrites of each prompt; see `interfaces.Rewriter`.

        `should_stop` is asked after every token and ends the work with Interrupted; `progress(done,
        rows)` is told after every batch. Raises BadInput for a blank prompt, a seed out of range, or
        critiques that are not one a prompt.
        """
        critiques = check_request(prompts, variants, seed, critiques)
        asked = [prompt_ids(self.tokenizer, p, c, self.system) for p, c in zip(prompts, critiques)]
        rows = [(i, v) for i in range(len(prompts)) for v in range(variants)]
        longest = self.context() - self.max_new_tokens
        # Like lengths go together: less padding.
        short = sorted((r for r in rows if len(asked[r[0]]) <= longest), key=lambda r: len(asked[r[0]]))
        answers: dict[tuple[int, int], Rewrite] = {}
        for i, v in rows:
            if len(asked[i]) > longest:
                why = f"the prompt is {len(asked[i])} tokens long, this rewriter reads {longest}"
                answers[i, v] = kept(prompts[i], self.name, why)
        for start in range(0, len(short), self.batch_size):
            batch = short[start : start + self.batch_size]
            keys = [row_seed(seed, prompts[i], critiques[i], v) if v else None for i, v in batch]
            written = self.write([asked[i] for i, _ in batch], keys, should_stop)
            for (i, v), one in zip(batch, written, strict=True):
                answers[i, v] = self.read(one, prompts[i])
            if progress is not None:
                progress(len(answers), len(rows))
        return [[answers[i, v] for v in range(variants)] for i in range(len(prompts))]

    def read(self, written: Written, prompt: str) -> Rewrite:
        """The rewrite in what was written for `prompt`; where there is none, the prompt and why."""
        limit = f"{self.max_new_tokens} tokens" if written.cut else ""
        return read_answer(written.text, prompt, self.name, limit)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the weights (a sample of every tensor), the system text and the sampling."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} ".encode())
            digest.update(repr(tensor.flatten()[:64].float().tolist()).encode())
        settings = [self.system, self.max_new_tokens, self.temperature, self.top_p]
        digest.update(json.dumps(settings).encode())
        return digest.hexdigest()[:16]

    def context(self) -> int:
        """Tokens that fit, prompt and answer together."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31

    def write(self, asked: list[list[int]], keys: Sequence[int | None],
              should_stop: Callable[[], bool] | None = None) -> list[Written]:
        """What the model writes to each row of prompt ids, in one batch; greedy where a row's key is None."""
        import torch
        from transformers import (
            GenerationConfig,
            LogitsProcessorList,
            StoppingCriteriaList,
            TemperatureLogitsWarper,
            TopPLogitsWarper,
        )

        device = self.model.device
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        width = max(map(len, asked))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in asked], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in asked], device=device)
        noise = GumbelNoise(keys, device)
        processors = LogitsProcessorList()
        if any(key is not None for key in keys):
            processors.append(TemperatureLogitsWarper(float(self.temperature)))
            if self.top_p < 1:
                processors.append(TopPLogitsWarper(self.top_p))
        processors.append(noise)
        criteria = StoppingCriteriaList([_Stop(should_stop)] if should_stop is not None else [])
        ends = self._ends()
        # The checkpoint's own settings (penalties, top_k) would bias the draw: all are set here.
        plain = GenerationConfig(
            max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1, use_cache=True,
            repetition_penalty=1.0, no_repeat_ngram_size=0, min_new_tokens=0, eos_token_id=ends,
            pad_token_id=pad,
        )  # fmt: skip
        own, self.model.generation_config = self.model.generation_config, plain
        try:
            with torch.inference_mode():
                out = self.model.generate(
                    input_ids=ids, attention_mask=mask, generation_config=plain,
                    logits_processor=processors, stopping_criteria=criteria,
                )  # fmt: skip
        finally:
            self.model.generation_config = own
        rows = out[:, width:].tolist()
        logps = torch.stack(noise.chosen, 1).tolist()  # (B, T)
        found = []
        for row, logp, text in zip(
            rows, logps, self.tokenizer.batch_decode(rows, skip_special_tokens=True), strict=True
        ):
            end = next((i + 1 for i, token in enumerate(row) if token in ends), None)
            found.append(Written(text, row[:end], logp[:end], cut=end is None))
        return found

    def _ends(self) -> list[int]:
        """Tokens that end a turn: the tokenizer's own, and those of the checkpoint's generation config."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        return sorted({end for end in (*ends, self.tokenizer.eos_token_id) if end is not None})


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


class GumbelNoise:
    """A logits processor that makes greedy decoding an exact draw from softmax(scores), row by row.

    A row whose key is None stays greedy.
    """

    def __init__(self, keys: Sequence[int | None], device: torch.device | str):
        import torch

        self.generators = [None if key is None else torch.Generator(device).manual_seed(key) for key in keys]
        self.chosen: list[torch.Tensor] = []  # step by step, (B,): log-probabilities of what was taken

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores (B, V) -> float32 scores + noise (B, V); impossible tokens stay impossible."""
        import torch

        rows, vocabulary = scores.shape
        assert rows == len(self.generators), "one generator per row"
        uniform = torch.empty((rows, vocabulary), dtype=torch.float32, device=scores.device)
        for row, generator in zip(uniform, self.generators):
            row.uniform_(generator=generator) if generator else row.fill_(0.5)
        tiny = torch.finfo(torch.float32).tiny
        exponential = -(uniform.clamp_min(tiny).log())  # 0 where uniform rounds to 1
        noise = -exponential.clamp_min(tiny).log()
        greedy = torch.tensor([generator is None for generator in self.generators], device=scores.device)
        noisy = scores.float() + noise.masked_fill(greedy[:, None], 0.0)
        taken = noisy.argmax(-1, keepdim=True)
        self.chosen.append(scores.float().log_softmax(-1).gather(1, taken)[:, 0])
        return noisy


class _Stop:
    """A stopping criterion that ends generation with Interrupted."""

    def __init__(self, should_stop: Callable[[], bool]):
        self.should_stop = should_stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        if self.should_stop():
            raise Interrupted("rewriting was stopped; no prompt of this call was rewritten")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def load_checkpoint(where: str, device: str = "cpu",
                    dtype: str | None = None) -> tuple[Any, Any, CheckpointSettings]:
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
    elif folder.exists() or where.startswith((".", "/", "~")):
        raise CheckpointError(f"no rewriter at {where}: expected a model folder or a hub name")
    settings = _read_settings(folder / SETTINGS)
    try:
        chosen = getattr(torch, dtype) if dtype else _default_dtype(device)
    except AttributeError as error:
        raise BadInput(f"unknown dtype {dtype!r}; expected float32, bfloat16 or float16") from error
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where, use_safetensors=True, trust_remote_code=False, dtype=chosen, output_loading_info=True,
            )  # fmt: skip
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


def _read_settings(path: Path) -> CheckpointSettings:
    if not path.is_file():
        return CheckpointSettings()
    try:
        return CheckpointSettings.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path}: {one_line(error)}; train or fetch the rewriter again") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _default_dtype(device: str) -> torch.dtype:
    import torch

    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
