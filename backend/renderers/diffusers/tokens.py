"""Masked-token pipelines (aMUSEd): a scheduler's step of each row alone, and what surrounds it.

Source: MaskGIT (Chang et al. 2022, arXiv 2202.04200) as diffusers has it: AmusedPipeline and its scheduler,
which fills in all masked tokens at each step and masks the least confident of them again.
Departs from it: AmusedScheduler draws a whole batch's tokens, and the noise of their confidence, from one
generator, so that candidates would depend on each other. Here it steps each row by itself with that row's own
generator: the plain pipeline asked for one picture draws the same.

The step image, what x0 is elsewhere, is the scheduler's own prediction of the whole picture: tokens that are
settled, and for the masked ones those drawn at this step. They are what the sampler goes on from, they cost
nothing, and after the last step they are the picture itself; the most likely tokens would be another picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...core.errors import RenderFailed

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def fills_in_tokens(scheduler: Any) -> bool:
    """Whether a scheduler's samples are ids of a codebook, some of them masked."""
    return "mask_token_id" in scheduler.config


def step_rows(
    step: Callable[..., tuple[Tensor, Tensor]],
    logits: Tensor,
    timestep: Any,
    tokens: Tensor,
    rows: Sequence[int],
    generators: Sequence[torch.Generator],
) -> Any:
    """AmusedScheduler's `step` for `rows` of `tokens` (B, h, w), each with its generator; others stay.

    `logits` are (B, codes, h, w). The result has `prev_sample` and `pred_original_sample`, (B, h, w) both.
    Raises RenderFailed for logits that are not finite.
    """
    import torch
    from diffusers.schedulers.scheduling_amused import AmusedSchedulerOutput

    if not torch.isfinite(logits[list(rows)]).all():
        raise RenderFailed(
            "the transformer gave logits that are not finite; its weights are damaged, or its "
            "dtype is too narrow (try dtype='bfloat16' or 'float32')"
        )
    following, predicted = tokens.clone(), tokens.clone()
    for row in rows:
        one = slice(row, row + 1)
        following[one], predicted[one] = step(
            logits[one], timestep, tokens[one], generator=generators[row], return_dict=False
        )
    return AmusedSchedulerOutput(following, predicted)  # type: ignore[arg-type]  # typed as a Generator


def hide_rows(
    add_noise: Callable[..., Tensor],
    tokens: Tensor,
    timestep: Any,
    mask_token: int,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """AmusedScheduler's `add_noise` for each row of `tokens` (B, h, w) with its own generator.

    AmusedImg2ImgPipeline asks for the noise of the step before the first one that is drawn. Where none is
    left out that is, counted from behind, the last step's, which hides nothing: all is hidden here.
    """
    import torch

    if int(timestep) == 0:
        return torch.full_like(tokens, mask_token)
    return torch.cat(
        [add_noise(tokens[row : row + 1], timestep, generator=one) for row, one in enumerate(generators)]
    )


def encode_text(pipeline: Any, text: str) -> tuple[Tensor, Tensor]:
    """(pooled (1, width), token states (1, T, width)), as AmusedPipeline.__call__ makes them; it has no
    `encode_prompt`."""
    words = pipeline.tokenizer
    ids = words(
        text, return_tensors="pt", padding="max_length", truncation=True, max_length=words.model_max_length
    ).input_ids
    said = pipeline.text_encoder(ids.to(pipeline._execution_device), output_hidden_states=True)
    return said.text_embeds, said.hidden_states[-2]


def decode_tokens(vqvae: Any, tokens: Tensor) -> Tensor:
    """Ids (B, h, w) -> pictures (B, 3, H, W), about 0..1: aMUSEd's VQModel knows no -1..1."""
    shape = (*tokens.shape, vqvae.config.latent_channels)
    return vqvae.decode(tokens, force_not_quantize=True, shape=shape, return_dict=False)[0]
