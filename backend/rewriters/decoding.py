"""How a causal language model writes rows: greedily, by beam search, or by a draw of each row's own.

A draw is Gumbel's trick: argmax(log p + g) with g from a generator of the row's own is an exact draw from p.
The generator is seeded with (seed, prompt, critique, variant), so a rewrite does not depend on its neighbours
in the batch, and variant 2 of 3 is variant 2 of 8. What is left is floating point: batch shape and padding
move logits by about 1e-6 in float32 (1e-2 in bfloat16), which turns a token only where two are that close.
`batch_size=1` removes that too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..core.errors import AnswerRefused, BadInput, Interrupted
from ..core.types import Rewrite
from .rows import RewriteRow, all_rows, group_by_prompt, keep_prompt, row_seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Written:
    """One row that a model wrote: `ids` with the token that ends the turn, unless it was `cut` off by the
    limit, and the log-probability of each under the distribution that it was drawn from (none of beams)."""

    text: str
    ids: list[int]
    logps: list[float]
    cut: bool


@dataclass(frozen=True)
class Decoding:
    """How rows are written: those with a key are drawn at `temperature` from the likeliest tokens that make
    up `top_p`, the others by beam search, which with one beam is greedy.

    Beams are compared by log p / length^`length_penalty`.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0


class LocalRewriter:
    """What rewriters with a model of their own share; `_written` says what each asks and how it reads it."""

    name: str
    model: Any  # a module; ComfyUI's memory manager moves it
    max_new_tokens: int
    temperature: float
    top_p: float
    beams: int = 1
    length_penalty: float = 1.0
    batch_size: int  # rows, prompts x variants

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.max_new_tokens, self.temperature, self.top_p, self.beams, self.length_penalty)

    def check(self) -> None:
        """Raises BadInput for impossible settings."""
        if (
            self.temperature <= 0
            or not 0 < self.top_p <= 1
            or min(self.batch_size, self.max_new_tokens, self.beams) < 1
        ):
            raise BadInput(
                "expected temperature > 0, 0 < top_p <= 1, batch_size, max_new_tokens and beams >= 1, got "
                f"{self.temperature}, {self.top_p}, {self.batch_size}, {self.max_new_tokens} and {self.beams}"
            )

    def rewrite(
        self,
        prompts: Sequence[str],
        variants: int = 1,
        seed: int = 0,
        critiques: Sequence[str | None] | None = None,
        *,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Rewrite]]:
        """`variants` rewrites of each prompt; see `interfaces.Rewriter`.

        `should_stop` is asked after every token and ends the work with Interrupted; `progress(done,
        rows)` is told after every batch. Raises BadInput for a blank prompt, a seed out of range, or
        critiques that are not one a prompt.
        """
        rows = all_rows(prompts, variants, seed, critiques)
        answers: dict[int, Rewrite] = {}
        for part in self._written(rows, seed, should_stop):
            answers |= part
            if progress is not None:
                progress(len(answers), len(rows))
        return group_by_prompt([answers[number] for number in range(len(rows))], variants)

    def ask(
        self,
        rows: Sequence[RewriteRow],
        seed: int,
        told: Callable[[int, Rewrite | AnswerRefused], None],
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """See `AsksRows`; they come in batches."""
        for part in self._written(rows, seed, should_stop):
            for number, rewrite in part.items():
                told(number, rewrite)

    def _written(
        self, rows: Sequence[RewriteRow], seed: int, should_stop: Callable[[], bool] | None
    ) -> Iterator[dict[int, Rewrite]]:
        """What is written to the rows, by their numbers, batch by batch."""
        raise NotImplementedError

    def _batches(
        self, rows: Sequence[RewriteRow], lengths: Sequence[int], seed: int, among: Iterable[int]
    ) -> Iterator[tuple[list[int], list[int | None]]]:
        """The numbers in `among`, `batch_size` at a time, each with the key of its row's noise: None for the
        first variant. Rows of like lengths go together: less padding."""
        order = sorted(among, key=lambda n: (lengths[n], n))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            yield (
                batch,
                [
                    row_seed(seed, row.prompt, row.critique, row.variant) if row.variant else None
                    for row in (rows[n] for n in batch)
                ],
            )

    def _settings(self) -> list[Any]:
        """What changes the answers beside the weights, for the fingerprint."""
        raise NotImplementedError

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the weights (a sample of every tensor) and with how they are asked."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} ".encode())
            digest.update(repr(tensor.flatten()[:64].float().tolist()).encode())
        digest.update(json.dumps(self._settings()).encode())
        return digest.hexdigest()[:16]


class AskingRewriter(LocalRewriter):
    """One whose model is asked in words and answers in words."""

    tokenizer: Any

    def question(self, prompt: str, critique: str | None) -> list[int]:
        """The token ids that ask for a rewrite."""
        raise NotImplementedError

    def read(self, written: Written, prompt: str) -> Rewrite:
        """The rewrite in what was written for `prompt`; where there is none, the prompt and why."""
        raise NotImplementedError

    def _written(
        self, rows: Sequence[RewriteRow], seed: int, should_stop: Callable[[], bool] | None
    ) -> Iterator[dict[int, Rewrite]]:
        """What is written to the rows, by their numbers: first what none can be written to, then batches."""
        questions = {(row.prompt, row.critique) for row in rows}
        asked = {question: self.question(*question) for question in questions}
        ids = [asked[row.prompt, row.critique] for row in rows]
        lengths, longest = [len(one) for one in ids], self.context() - self.max_new_tokens
        why = "the prompt is {} tokens long, this rewriter reads {}"
        too_long = {
            n: keep_prompt(row.prompt, self.name, why.format(lengths[n], longest))
            for n, row in enumerate(rows)
            if lengths[n] > longest
        }
        if too_long:
            yield too_long
        for batch, keys in self._batches(rows, lengths, seed, set(range(len(rows))) - too_long.keys()):
            written = self.write([ids[n] for n in batch], keys, should_stop)
            yield {n: self.read(one, rows[n].prompt) for n, one in zip(batch, written, strict=True)}

    def context(self) -> int:
        """Tokens that fit, prompt and answer together."""
        return context_length(self.model)

    def write(
        self,
        asked: list[list[int]],
        keys: Sequence[int | None],
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Written]:
        """What the model writes to each row of prompt ids, in one batch; a row without a key is not drawn."""
        inputs = padded(asked, pad_token(self.tokenizer), self.model.device)
        return write(self.model, self.tokenizer, inputs, keys, self.decoding, should_stop)


def write(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Tensor],
    keys: Sequence[int | None],
    how: Decoding,
    should_stop: Callable[[], bool] | None = None,
    opening: Tensor | None = None,
) -> list[Written]:
    """What the model writes to each row of `inputs`, in one batch; a row is drawn where it has a key.

    `inputs` are `attention_mask` and either `input_ids` or `inputs_embeds`, padded on the left. `opening`
    (V,) is true for the tokens that an answer may begin with; None: all. Raises Interrupted.
    """
    beamed = [i for i, key in enumerate(keys) if key is None]
    if how.beams > 1 and 0 < len(beamed) < len(keys):
        parts = [beamed, [i for i, key in enumerate(keys) if key is not None]]
        found: dict[int, Written] = {}
        for rows in parts:
            some = {name: tensor[rows] for name, tensor in inputs.items()}
            written = write(model, tokenizer, some, [keys[i] for i in rows], how, should_stop, opening)
            found |= dict(zip(rows, written, strict=True))
        return [found[i] for i in range(len(keys))]
    return _write(model, tokenizer, inputs, keys, how, should_stop, opening)


def _write(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Tensor],
    keys: Sequence[int | None],
    how: Decoding,
    should_stop: Callable[[], bool] | None,
    opening: Tensor | None,
) -> list[Written]:
    import torch
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        StoppingCriteriaList,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    drawn = any(key is not None for key in keys)
    beams = 1 if drawn else how.beams
    width = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0  # embeddings are not given back
    noise = GumbelNoise(keys, inputs["attention_mask"].device)
    processors = LogitsProcessorList([] if opening is None else [_Opening(opening, width)])
    if drawn:
        processors.append(TemperatureLogitsWarper(float(how.temperature)))
        if how.top_p < 1:
            processors.append(TopPLogitsWarper(how.top_p))
    if beams == 1:
        processors.append(noise)
    criteria = StoppingCriteriaList([_Stop(should_stop)] if should_stop is not None else [])
    ends = end_tokens(model, tokenizer)
    # The checkpoint's own settings (penalties, top_k) would bias the draw: all are set here.
    plain = GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        do_sample=False,
        num_beams=beams,
        use_cache=True,
        length_penalty=how.length_penalty,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
        eos_token_id=ends,
        pad_token_id=pad_token(tokenizer),
    )
    own, model.generation_config = model.generation_config, plain
    try:
        with torch.inference_mode():
            out = model.generate(
                **inputs, generation_config=plain, logits_processor=processors, stopping_criteria=criteria
            )
    finally:
        model.generation_config = own
    rows = out[:, width:].tolist()
    logps = torch.stack(noise.chosen, 1).tolist() if beams == 1 else [[] for _ in rows]  # (B, T)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    found = []
    for row, logp, text in zip(rows, logps, texts, strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in ends), None)
        found.append(Written(text, row[:end], logp[:end], cut=end is None))
    return found


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a turn: the tokenizer's own, and those of the checkpoint's generation config."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})


def given(*values: Any) -> Any:
    """The first of them that is not None."""
    return next(value for value in values if value is not None)


def pad_token(tokenizer: Any) -> int:
    """The token that fills rows up; nothing looks at it."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def context_length(model: Any) -> int:
    """Tokens that fit into a language model, what it reads and what it writes together."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Rows of token ids -> `input_ids` and `attention_mask`, padded on the left."""
    import torch

    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    named = {"input_ids": ids, "attention_mask": mask}
    return {name: torch.tensor(rows, device=device) for name, rows in named.items()}


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
        if not any(self.generators):
            return self._take(scores, scores.float())
        uniform = torch.empty((rows, vocabulary), dtype=torch.float32, device=scores.device)
        for row, generator in zip(uniform, self.generators):
            row.uniform_(generator=generator) if generator else row.fill_(0.5)
        tiny = torch.finfo(torch.float32).tiny
        exponential = -(uniform.clamp_min(tiny).log())  # 0 where uniform rounds to 1
        noise = -exponential.clamp_min(tiny).log()
        greedy = torch.tensor([generator is None for generator in self.generators], device=scores.device)
        return self._take(scores, scores.float() + noise.masked_fill(greedy[:, None], 0.0))

    def _take(self, scores: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        taken = noisy.argmax(-1, keepdim=True)
        self.chosen.append(scores.float().log_softmax(-1).gather(1, taken)[:, 0])
        return noisy


class _Opening:
    """A logits processor that lets an answer begin with some tokens only."""

    def __init__(self, allowed: Tensor, width: int):
        self.forbidden, self.width = ~allowed, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] > self.width:
            return scores
        return scores.masked_fill(self.forbidden.to(scores.device), -float("inf"))


class _Stop:
    """A stopping criterion that ends generation with Interrupted."""

    def __init__(self, should_stop: Callable[[], bool]):
        self.should_stop = should_stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        check_stop(self.should_stop)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def check_stop(should_stop: Callable[[], bool] | None) -> None:
    """Raises Interrupted where the work is to stop."""
    if should_stop is not None and should_stop():
        raise Interrupted("rewriting was stopped; no prompt of this call was rewritten")
