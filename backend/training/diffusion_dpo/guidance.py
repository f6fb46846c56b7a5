"""PARM guidance of Diffusion-DPO: a judge in the objective, with a real gradient.

Source: PARM (Guo et al. 2025, arXiv 2501.13926), whose guidance adds the judge's verdict to DPO's objective.
Departs from its code, where the verdict is a constant whose gradient is zero. Two forms take its place:

`weigh_by`, the one to try first: a pair's loss is multiplied by how much the judge prefers its better picture
(for a judge that gives P(yes): P(yes | better) - P(yes | worse)), divided by the mean over all pairs. Pairs
of which the judge is sure move the renderer more, and a pair that the judge would turn round counts 0. It
works with every reward, needs no memory, and a renderer cannot deceive a judge through which no gradient
flows.

`judge`: minus the judge's score of the better picture is added to the loss of pairs. The score is that of the
picture that the denoiser predicts, decoded, with a gradient through its pixels (as in ReFL: ImageReward,
arXiv 2304.05977, algorithm 1, which takes it at a late step of sampling). It is for judges of CLIP's kind;
the processor of a VLM cuts a picture up outside of torch, so that no gradient passes. Decoder and judge stay
in memory, with the activations of one picture. A judge that is optimised directly can be deceived: look at a
held-out reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, Unsupported
from ...factory import reward_spec
from ...preferences.store import Pair, canonical_reward_name
from ...renderers.diffusers.pipelines import unscale_latents
from ...rewards.published.preprocess import MEAN, STD
from ...storage.images import to_pil
from ..common.pairs import TeachesNothing
from .config import MARGIN, JudgeGradient

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.interfaces import Reward


NEAR = 0.05  # mean distance of normalised pixels: roundings to 8 bits, PIL's bicubic and torch's


def clear_enough(signal: Tensor, sigma: Tensor, until: float) -> Tensor:
    """The indices of noisy latents, signal x + sigma noise (both (B,)), with a smaller share of noise than
    `until`.

    The share is sigma / (signal + sigma): for a flow sigma itself, for a diffusion 1/2 where both are equal.
    """
    return (sigma < until * (signal + sigma)).nonzero()[:, 0]


def importance(pairs: Sequence[Pair], judge: str | None) -> dict[str, float]:
    """The weight of each pair by its id, with mean 1; empty where all pairs count the same.

    Raises BadInput where the judge did not score the pairs' pictures, and TeachesNothing where it prefers the
    better picture of no pair.
    """
    if judge is None:
        return {}
    if judge == MARGIN:
        found = [pair.margin for pair in pairs]
    else:
        judge = canonical_reward_name(judge)
        lacking = sum(judge not in side.scores for pair in pairs for side in (pair.chosen, pair.rejected))
        if lacking:
            known = sorted({name for pair in pairs for name in pair.chosen.scores})
            raise BadInput(
                f"weigh_by={judge!r}: {lacking} of the pairs' {2 * len(pairs)} pictures have no "
                f"such score; expected {', '.join([MARGIN, *known])}"
            )
        spec = reward_spec(judge)
        sign = -1.0 if spec is not None and not spec.higher_is_better else 1.0
        found = [max(0.0, sign * (pair.chosen.scores[judge] - pair.rejected.scores[judge])) for pair in pairs]
    mean = sum(found) / len(found)
    if mean <= 0:
        raise TeachesNothing(
            f"weigh_by={judge!r}: it prefers the better picture of no pair; weigh by another"
        )
    return {pair.id: value / mean for pair, value in zip(pairs, found)}


def check_gradient(name: str, judge: Reward) -> None:
    if not judge.capabilities.gradient:
        raise Unsupported(
            f"judge.reward={name!r} gives no gradient through pixels; weigh_by takes every reward"
        )


class Guide:
    """A frozen judge behind a frozen decoder: latents -> scores that have a gradient."""

    def __init__(
        self,
        settings: JudgeGradient,
        vae: Any,
        judge: Any,
        picture: Tensor,
        to_vae: Callable[[Tensor], Tensor] | None = None,
    ):
        """`picture` (H, W, 3), one of the training pictures, shows whether the judge prepares pictures as
        this class does. Raises Unsupported where it does not. `to_vae` makes of latents what the VAE decodes;
        None: as its config scales them."""
        self.settings, self.vae, self.judge = settings, vae, judge
        self.to_vae = to_vae or (lambda latents: unscale_latents(latents, vae.config))
        name = settings.reward
        check_gradient(name, judge)
        if picture.shape[0] != picture.shape[1]:
            raise Unsupported("a judge's gradient is for square pictures, of which none is cut off; set size")
        judge.model.requires_grad_(False)
        for module in (vae, judge.model):
            module.eval()
        own = judge.prepare(to_pil(picture[None])[0])
        self.side = own.shape[-1]
        apart = (self.prepared(picture.permute(2, 0, 1)[None])[0] - own).abs().mean().item()
        if apart > NEAR:
            raise Unsupported(
                f"judge.reward={name!r} prepares pictures in a way of its own, that has no "
                f"gradient ({apart:.2g} apart); weigh_by takes every reward"
            )

    def prepared(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) in 0..1 -> the input of the judge's model: `LearnedJudge.prepare` with a gradient."""
        from torch.nn import functional

        if pixels.shape[-1] != self.side:
            pixels = functional.interpolate(
                pixels, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False
            )
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        return (pixels - mean) / std

    def __call__(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """Predicted clean latents (B, …) -> scores (B,), 0..1 by the judge's range, 1 best."""
        import torch
        from torch.utils.checkpoint import checkpoint

        weight = next(self.judge.model.parameters())
        spec = self.judge.spec
        scores = []
        for latent, prompt in zip(latents, prompts, strict=True):  # one decoder's activations at a time
            scores.append(checkpoint(self._score, latent[None].float(), prompt, weight, use_reentrant=False))
        share = (torch.stack(scores).float() - spec.low) / (spec.high - spec.low)
        return share if spec.higher_is_better else 1 - share

    def _score(self, latent: Tensor, prompt: str, weight: Tensor) -> Tensor:
        decoded = self.vae.decode(self.to_vae(latent), return_dict=False)[0] / 2 + 0.5
        if decoded.ndim == 5:  # a video of one frame
            decoded = decoded[:, :, 0]
        if decoded.shape[1] == 4:  # with opacity: laid on white
            decoded = decoded[:, :3] * decoded[:, 3:] + 1 - decoded[:, 3:]
        pixels = self.prepared(decoded.clamp(0, 1))
        return self.judge.rate(pixels.to(weight.device, weight.dtype), [prompt])[0]
