"""Masked-token pipelines (aMUSEd): scheduler steps row by row.

Source: MaskGIT (Chang et al. 2022, arXiv 2202.04200) as implemented in diffusers: AmusedPipeline and its
scheduler, which samples all masked tokens at each step and masks the least confident of them again.
Departs from it: AmusedScheduler samples the tokens of a whole batch, and the noise of their confidence, from
one generator, so candidates would depend on each other. Here each row is stepped separately with its own
generator, and equals the plain pipeline's single picture.

The preview (x0 in other families) is the scheduler's own prediction of the whole picture: the tokens that are
fixed, and for the masked ones those sampled at this step. The sampler continues from them, they cost nothing,
and after the last step they are the final picture; the most likely tokens would give another picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...core.errors import RenderFailed

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def uses_masked_tokens(scheduler: Any) -> bool:
    """Whether a scheduler's samples are codebook ids, some of them masked."""
    return "mask_token_id" in scheduler.config


def step_rows(
    step: Callable[..., tuple[Tensor, Tensor]],
    logits: Tensor,
    timestep: Any,
    tokens: Tensor,
    rows: Sequence[int],
    generators: Sequence[torch.Generator],
) -> Any:
    """AmusedScheduler's `step` for `rows` of `tokens` (B, h, w), each with its own generator.

    Other rows are unchanged. `logits` are (B, codes, h, w). The result's `prev_sample` and
    `pred_original_sample` are (B, h, w). Raises RenderFailed for logits that are not finite.
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


def mask_rows(
    add_noise: Callable[..., Tensor],
    tokens: Tensor,
    timestep: Any,
    mask_token: int,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """AmusedScheduler's `add_noise`, which masks tokens, for each row of `tokens` (B, h, w) with its own
    generator.

    AmusedImg2ImgPipeline passes the timestep before the first one it draws. If it skips none, that index
    wraps around to the last timestep, which masks nothing; here everything is masked then.
    """
    import torch

    if int(timestep) == 0:
        return torch.full_like(tokens, mask_token)
    return torch.cat(
        [add_noise(tokens[row : row + 1], timestep, generator=one) for row, one in enumerate(generators)]
    )
