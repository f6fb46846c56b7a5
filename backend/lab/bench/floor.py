"""The floor of a GRPO step: the time of its networks alone, on tensors of the same shapes.

Renderer: the denoiser's rows at the cost of one batched evaluation, and the VAE decoder's pictures. Rewriter:
one forward pass for each token of the longest answer of each batch, with a key-value cache; the reference's
forward pass; and the policy's forward and backward pass. Everything else counts as overhead, also the text
encoders and the judges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ...renderers.diffusers.call import decoder
from ...renderers.diffusers.row_mask import Forwards, RowMask

if TYPE_CHECKING:
    from torch import Tensor

    from ...renderers.diffusers.renderer import DiffusersRenderer
    from ...rewriters.reprompt import Completion, RePromptRewriter

Row = tuple[list[int], list[int]]  # token ids of a prompt and of its answer
EVALUATIONS = 3  # of the denoiser and of the decoder, of which the mean is used


class NetworkProbe:
    """Records the inputs of a renderer's and a rewriter's networks, and times the networks alone on them.

    `rows` of the denoiser and `pictures` of the decoder are counted since `reset`.
    """

    def __init__(
        self,
        renderer: DiffusersRenderer,
        rewriter: RePromptRewriter,
        autocast: Callable[[], AbstractContextManager[Any]],
    ):
        self.renderer, self.rewriter, self.autocast = renderer, rewriter, autocast
        self.denoiser, self.vae = renderer.denoisers[0], decoder(renderer.pipeline)
        # Not a hook: previews call the denoiser without evaluating it.
        Forwards([self.denoiser], self._evaluating)
        self._decode, self.vae.decode = self.vae.decode, self._decoding
        self._generate, self.rewriter.generate = self.rewriter.generate, self._generating
        self.reset()

    def reset(self) -> None:
        self.rows = self.pictures = self._most = 0
        self._evaluated: tuple[tuple, dict[str, Any]] = ((), {})
        self._latents: Tensor | None = None
        self._batches: list[list[Row]] = []

    def _evaluating(self, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        # The first argument is `sample` in UNets and `hidden_states` in transformers, with or without its
        # name.
        hidden = args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "sample"]
        self.rows += len(hidden)
        if len(hidden) >= self._most:
            self._most, self._evaluated = len(hidden), (args, kwargs)
        return forward(*args, **kwargs)

    def _decoding(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.pictures += len(latents)
        if self._latents is None or len(latents) >= len(self._latents):
            self._latents = latents
        return self._decode(latents, *args, **kwargs)

    def _generating(self, requests: list[list[int]], *args: Any, **kwargs: Any) -> list[Completion]:
        written = self._generate(requests, *args, **kwargs)
        self._batches.append([(ids, one.ids) for ids, one in zip(requests, written, strict=True)])
        return written

    def render_seconds(self) -> float:
        """Seconds for the rows and pictures since `reset`, at the cost of the largest batches among them."""
        import torch

        if self._latents is None:
            return 0.0
        rows, pictures, latents, most = self.rows, self.pictures, self._latents, self._most
        args, kwargs = self._evaluated
        with torch.no_grad():
            with RowMask([self.denoiser], most, self.renderer.chunk):
                row = seconds_of(lambda: self.denoiser(*args, **kwargs), EVALUATIONS) / most
            picture = seconds_of(lambda: self._decode(latents), EVALUATIONS) / len(latents)
        self.rows = rows  # without the rows of this measurement
        return rows * row + pictures * picture

    def write_seconds(self) -> float:
        """Seconds to generate all recorded batches again, token by token."""
        import torch

        model = self.rewriter.model
        training = model.training
        model.eval()
        try:
            with torch.inference_mode(), self.autocast():
                return seconds_of(lambda: [_generate(model, *self._pad(batch)) for batch in self._batches])
        finally:
            model.train(training)

    def update_seconds(self, reference: Any, rows: Sequence[Row], batch: int) -> float:
        """Seconds of one update on `rows`, `batch` at a time. `reference` is None without a second model."""
        model = self.rewriter.model

        def update() -> None:
            for start in range(0, len(rows), batch):
                prompts, answers, mask = self._pad(rows[start : start + batch])
                with self.autocast():
                    _pass(model, reference, prompts, answers, mask)

        try:
            return seconds_of(update)
        finally:
            model.zero_grad(set_to_none=True)

    def _pad(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts (B, P) padded on the left, answers (B, T) on the right, and the mask (B, P + T)."""
        import torch

        pad, device = self.rewriter.tokenizer.pad_token_id, self.rewriter.model.device
        width, length = max(len(a) for a, _ in rows), max(len(b) for _, b in rows)
        prompts = [[pad] * (width - len(a)) + a for a, _ in rows]
        answers = [b + [pad] * (length - len(b)) for _, b in rows]
        mask = [[0] * (width - len(a)) + [1] * (len(a) + len(b)) + [0] * (length - len(b)) for a, b in rows]
        return tuple(torch.tensor(part, device=device) for part in (prompts, answers, mask))  # pyright: ignore


def _generate(model: Any, prompts: Tensor, answers: Tensor, mask: Tensor) -> None:
    import torch

    width, length = prompts.shape[1], answers.shape[1]
    mask = torch.cat([mask[:, :width], torch.ones_like(answers)], 1)  # as in generation, ended rows continue
    out = model(input_ids=prompts, attention_mask=mask[:, :width], use_cache=True, logits_to_keep=1)
    for i in range(length - 1):
        out = model(
            input_ids=answers[:, i : i + 1],
            attention_mask=mask[:, : width + i + 1],
            past_key_values=out.past_key_values,
            use_cache=True,
        )


def _pass(model: Any, reference: Any, prompts: Tensor, answers: Tensor, mask: Tensor) -> None:
    import torch

    asked = {
        "input_ids": torch.cat([prompts, answers], 1),
        "attention_mask": mask,
        "logits_to_keep": answers.shape[1] + 1,
        "use_cache": False,
    }
    if reference is not None:
        with torch.no_grad():
            reference(**asked)
    logits = model(**asked).logits[:, :-1]
    logits.float().log_softmax(-1).gather(-1, answers[..., None]).mean().backward()


def seconds_of(call: Callable[[], Any], times: int = 1) -> float:
    """Mean seconds of a call."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - started) / times
