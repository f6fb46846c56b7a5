"""Decoding with a causal language model: greedy, beam search, or sampling with a generator per row.

Sampling uses the Gumbel-max trick: argmax(log p + g), with Gumbel noise g from the row's own generator, is an
exact sample from p. The generator is seeded with (seed, prompt, critique, variant). So a rewrite does not
depend on its neighbours in the batch, and variant 2 of 3 is variant 2 of 8. Only rounding is left: batch
shape and padding change logits by about 1e-6 in float32 (1e-2 in bfloat16), which changes a token only if two
tokens are that close. `batch_size=1` removes that too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..core.errors import AnswerRefused, BadInput, Interrupted
from ..core.types import Rewrite, RewriterCapabilities
from .rows import RewriteRow, all_rows, group_by_prompt, keep_prompt, row_seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Completion:
    """What a model generated for one row."""

    text: str
    ids: list[int]  # token ids, including the token that ends the turn unless `truncated`
    logps: list[float]  # log-probability of each token under the sampling distribution; empty for beam search
    truncated: bool  # cut off by the limit of new tokens


@dataclass(frozen=True)
class Decoding:
    """Decoding settings.

    Rows with a seed are sampled at `temperature` from the most likely tokens whose probabilities add up to
    `top_p`. Rows without one are decoded by beam search; with one beam that is greedy decoding. Beams are
    compared by log p / length^`length_penalty`.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0


class LocalRewriter:
    """Base of rewriters that run a model in this process. Subclasses implement `_rewrite_batches`."""

    name: str
    capabilities = RewriterCapabilities(weights=True)
    model: Any  # an nn.Module
    patcher: Any = None  # see `interfaces.Managed`
    max_new_tokens: int
    temperature: float
    top_p: float
    beams: int = 1
    length_penalty: float = 1.0
    batch_size: int  # rows (prompts x variants)

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.max_new_tokens, self.temperature, self.top_p, self.beams, self.length_penalty)

    def check_settings(self) -> None:
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

        `should_stop` is called after every token; if it returns True, Interrupted is raised. `progress(done,
        rows)` is called after every batch. Raises BadInput for a blank prompt, a seed out of range, or a
        number of critiques other than the number of prompts.
        """
        rows = all_rows(prompts, variants, seed, critiques)
        answers: dict[int, Rewrite] = {}
        for part in self._rewrite_batches(rows, seed, should_stop):
            answers |= part
            if progress is not None:
                progress(len(answers), len(rows))
        return group_by_prompt([answers[number] for number in range(len(rows))], variants)

    def rewrite_rows(
        self,
        rows: Sequence[RewriteRow],
        seed: int,
        on_rewrite: Callable[[int, Rewrite | AnswerRefused], None],
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """See `RowRewriter`. Rewrites arrive batch by batch."""
        for part in self._rewrite_batches(rows, seed, should_stop):
            for number, rewrite in part.items():
                on_rewrite(number, rewrite)

    def _rewrite_batches(
        self, rows: Sequence[RewriteRow], seed: int, should_stop: Callable[[], bool] | None
    ) -> Iterator[dict[int, Rewrite]]:
        """Yields {row index: rewrite}, batch by batch."""
        raise NotImplementedError

    def _batches(
        self, rows: Sequence[RewriteRow], lengths: Sequence[int], seed: int, indices: Iterable[int]
    ) -> Iterator[tuple[list[int], list[int | None]]]:
        """Yields (row indices, their seeds), at most `batch_size` rows at a time, from `indices`.

        The seed is None for the first variant, which is not sampled. Rows of similar length share a batch, to
        save padding.
        """
        order = sorted(indices, key=lambda n: (lengths[n], n))
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
        """The values besides the weights that change the answers; part of the fingerprint."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """Changes with the weights (the first 64 numbers of each tensor) and with `_settings`."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} ".encode())
            digest.update(repr(tensor.flatten()[:64].float().tolist()).encode())
        digest.update(json.dumps(self._settings()).encode())
        return digest.hexdigest()[:16]


class CausalLMRewriter(LocalRewriter):
    """A rewriter whose model reads a text request and continues it with the answer."""

    tokenizer: Any

    def encode_request(self, prompt: str, critique: str | None) -> list[int]:
        """The token ids of the request for a rewrite."""
        raise NotImplementedError

    def to_rewrite(self, completion: Completion, prompt: str) -> Rewrite:
        """The rewrite in the completion of `prompt`'s request; if there is none, the prompt as fallback."""
        raise NotImplementedError

    def _rewrite_batches(
        self, rows: Sequence[RewriteRow], seed: int, should_stop: Callable[[], bool] | None
    ) -> Iterator[dict[int, Rewrite]]:
        """Yields {row index: rewrite}: first the rows that are too long for the model, then batches."""
        distinct = {(row.prompt, row.critique) for row in rows}
        encoded = {request: self.encode_request(*request) for request in distinct}
        ids = [encoded[row.prompt, row.critique] for row in rows]
        lengths, longest = [len(one) for one in ids], self.context_length() - self.max_new_tokens
        why = "the prompt is {} tokens long, this rewriter reads {}"
        too_long = {
            n: keep_prompt(row.prompt, self.name, why.format(lengths[n], longest))
            for n, row in enumerate(rows)
            if lengths[n] > longest
        }
        if too_long:
            yield too_long
        for batch, seeds in self._batches(rows, lengths, seed, set(range(len(rows))) - too_long.keys()):
            completions = self.generate([ids[n] for n in batch], seeds, should_stop)
            yield {n: self.to_rewrite(one, rows[n].prompt) for n, one in zip(batch, completions, strict=True)}

    def context_length(self) -> int:
        """Maximum number of tokens, request and answer together."""
        return context_length(self.model)

    def generate(
        self,
        requests: list[list[int]],
        seeds: Sequence[int | None],
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Completes each row of token ids, all in one batch. Only rows with a seed are sampled."""
        inputs = pad_left(requests, pad_token(self.tokenizer), self.model.device)
        return generate(self.model, self.tokenizer, inputs, seeds, self.decoding, should_stop)


def generate(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Tensor],
    seeds: Sequence[int | None],
    decoding: Decoding,
    should_stop: Callable[[], bool] | None = None,
    first_tokens: Tensor | None = None,
) -> list[Completion]:
    """Completes each row of `inputs`, in one batch. Rows with a seed are sampled, the others are not.

    `inputs` are `attention_mask` and either `input_ids` or `inputs_embeds`, padded on the left.
    `first_tokens` (V,) is true for the tokens that an answer may begin with; None allows all. Raises
    Interrupted.
    """
    beamed = [i for i, seed in enumerate(seeds) if seed is None]
    if decoding.beams > 1 and 0 < len(beamed) < len(seeds):
        parts = [beamed, [i for i, seed in enumerate(seeds) if seed is not None]]
        completions: dict[int, Completion] = {}
        for rows in parts:
            some = {name: tensor[rows] for name, tensor in inputs.items()}
            part = generate(
                model, tokenizer, some, [seeds[i] for i in rows], decoding, should_stop, first_tokens
            )
            completions |= dict(zip(rows, part, strict=True))
        return [completions[i] for i in range(len(seeds))]
    return _generate(model, tokenizer, inputs, seeds, decoding, should_stop, first_tokens)


def _generate(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Tensor],
    seeds: Sequence[int | None],
    decoding: Decoding,
    should_stop: Callable[[], bool] | None,
    first_tokens: Tensor | None,
) -> list[Completion]:
    import torch
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        StoppingCriteriaList,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    sampled = any(seed is not None for seed in seeds)
    beams = 1 if sampled else decoding.beams
    # `generate` returns the prompt too if it got ids, but not if it got embeddings.
    width = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    noise = GumbelNoise(seeds, inputs["attention_mask"].device)
    processors = LogitsProcessorList([] if first_tokens is None else [_FirstTokenMask(first_tokens, width)])
    if sampled:
        processors.append(TemperatureLogitsWarper(float(decoding.temperature)))
        if decoding.top_p < 1:
            processors.append(TopPLogitsWarper(decoding.top_p))
    if beams == 1:
        processors.append(noise)
    criteria = StoppingCriteriaList([_StopOnRequest(should_stop)] if should_stop is not None else [])
    ends = end_tokens(model, tokenizer)
    # The checkpoint's own settings (penalties, top_k) would bias the sampling: all are set here.
    plain = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        num_beams=beams,
        use_cache=True,
        length_penalty=decoding.length_penalty,
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
    logps = torch.stack(noise.logps, 1).tolist() if beams == 1 else [[] for _ in rows]  # (B, T)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    completions = []
    for row, logp, text in zip(rows, logps, texts, strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in ends), None)
        completions.append(Completion(text, row[:end], logp[:end], truncated=end is None))
    return completions


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids of the tokens that end a turn: the tokenizer's and those of the checkpoint's generation config."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})


def first_not_none(*values: Any) -> Any:
    """The first value that is not None."""
    return next(value for value in values if value is not None)


def pad_token(tokenizer: Any) -> int:
    """Id of the padding token, which is masked everywhere. Without one: the end-of-sequence token."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def context_length(model: Any) -> int:
    """Maximum number of tokens of a language model, input and output together."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Rows of token ids -> `input_ids` and `attention_mask` (B, T), padded on the left."""
    import torch

    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    named = {"input_ids": ids, "attention_mask": mask}
    return {name: torch.tensor(rows, device=device) for name, rows in named.items()}


class GumbelNoise:
    """A logits processor that turns greedy decoding into exact sampling from softmax(scores), row by row.

    A row whose seed is None stays greedy.
    """

    def __init__(self, seeds: Sequence[int | None], device: torch.device | str):
        import torch

        self.generators = [
            None if seed is None else torch.Generator(device).manual_seed(seed) for seed in seeds
        ]
        self.logps: list[torch.Tensor] = []  # per step (B,): log-probabilities of the chosen tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores (B, V) -> float32 scores + noise (B, V); impossible tokens stay impossible."""
        import torch

        rows, vocabulary = scores.shape
        assert rows == len(self.generators), "one generator per row"
        if not any(self.generators):
            return self._choose(scores, scores.float())
        uniform = torch.empty((rows, vocabulary), dtype=torch.float32, device=scores.device)
        for row, generator in zip(uniform, self.generators):
            row.uniform_(generator=generator) if generator else row.fill_(0.5)
        tiny = torch.finfo(torch.float32).tiny
        exponential = -(uniform.clamp_min(tiny).log())  # 0 where uniform rounds to 1
        noise = -exponential.clamp_min(tiny).log()
        greedy = torch.tensor([generator is None for generator in self.generators], device=scores.device)
        return self._choose(scores, scores.float() + noise.masked_fill(greedy[:, None], 0.0))

    def _choose(self, scores: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        chosen = noisy.argmax(-1, keepdim=True)
        self.logps.append(scores.float().log_softmax(-1).gather(1, chosen)[:, 0])
        return noisy


class _FirstTokenMask:
    """A logits processor that allows only some tokens at the beginning of an answer."""

    def __init__(self, allowed: Tensor, width: int):
        self.forbidden, self.width = ~allowed, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] > self.width:
            return scores
        return scores.masked_fill(self.forbidden.to(scores.device), -float("inf"))


class _StopOnRequest:
    """A stopping criterion that raises Interrupted when `should_stop` returns True."""

    def __init__(self, should_stop: Callable[[], bool]):
        self.should_stop = should_stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        check_stop(self.should_stop)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def check_stop(should_stop: Callable[[], bool] | None) -> None:
    """Raises Interrupted if `should_stop` returns True."""
    if should_stop is not None and should_stop():
        raise Interrupted("rewriting was stopped; no prompt of this call was rewritten")
