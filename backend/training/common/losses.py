"""Losses as pure tensor functions, each with its paper and equation. No model, no configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "flow")  # what a denoiser may be trained to predict


def noised(clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """x_t = signal x0 + sigma noise, all (B, …) with `signal` and `sigma` (B,).

    Diffusion: signal = sqrt(alphas_cumprod), sigma = sqrt(1 - alphas_cumprod) (Ho et al. 2020, arXiv
    2006.11239, eq. 4). Flow: signal = 1 - sigma (Liu et al. 2022, arXiv 2209.03003).
    """
    return _along(signal, clean) * clean + _along(sigma, clean) * noise


def denoising_target(prediction: str, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """What a denoiser should predict for `noised(clean, noise, signal, sigma)`, (B, …); `prediction` is one
    of PREDICTIONS.

    epsilon: the noise (arXiv 2006.11239, eq. 14). v_prediction: signal noise - sigma x0 (Salimans & Ho
    2022, arXiv 2202.00512, appendix D). flow: noise - x0, towards the noise (arXiv 2209.03003, eq. 1).
    """
    if prediction == "epsilon":
        return noise
    if prediction == "v_prediction":
        return _along(signal, clean) * noise - _along(sigma, clean) * clean
    assert prediction == "flow", prediction
    return noise - clean


def predicted_clean(prediction: str, noisy: Tensor, output: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """x0 by a denoiser's `output` for `noisy`, all (B, …) with `signal` and `sigma` (B,): the equations of
    `denoising_target` and `noised`, solved for x0.

    flow: x_t - sigma v, as signal + sigma is 1. v_prediction: signal x_t - sigma v, as signal^2 + sigma^2 is.
    """
    if prediction == "epsilon":
        return (noisy - _along(sigma, noisy) * output) / _along(signal, noisy)
    if prediction == "v_prediction":
        return _along(signal, noisy) * noisy - _along(sigma, noisy) * output
    assert prediction == "flow", prediction
    return noisy - _along(sigma, noisy) * output


def denoising_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean of the squared differences of each sample, (B, …) -> (B,), in float32."""
    return (output.float() - target.float()).square().flatten(1).mean(1)


def diffusion_dpo(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """(losses, margins) of pairs, (B,) each; a loss is -log sigmoid of its margin.

    Source: Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908), eq. 14, for epsilon; for a flow's
    velocities Flow-DPO (Liu et al. 2025, arXiv 2501.13918) with a constant beta.
        margin = -beta / 2 [(chosen - reference_chosen) - (rejected - reference_rejected)]
    The arguments are `denoising_error`s of both pictures of a pair at ONE noise and ONE time, by the model
    and by its reference.

    The convention decides what a beta means. Here, as in the authors' code (SalesforceAIResearch/DiffusionDPO
    at 5233e75) and in flow_grpo's DPO (yifan123/flow_grpo at ac4c86e), an error is the MEAN over a latent's
    numbers, and beta is HALVED; beta 5000 for epsilon and 100 for a flow are meant so. Eq. 14 has the sum
    over the n numbers and no half: its beta T omega is beta / (2 n) here. An error counts in what the model
    predicts: with x_t = a x0 + s noise one of v is 1 / a^2 of the same one of epsilon, so that v at the same
    beta weighs noisy times more.

    While the model is its reference a margin is 0, and a loss log 2.
    """
    from torch.nn.functional import logsigmoid

    margins = -0.5 * beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -logsigmoid(margins), margins


def pivot_error(predicted: Tensor, target: Tensor) -> Tensor:
    """PRIP's first stage: how far pivots predicted from prompts are from those of the preferred pictures,
    both (B, queries, width) and standardised -> a number, in float32.

    Source: PRIP (Zhan et al. 2024, arXiv 2407.00247), eq. 6, with the mean over all numbers in place of their
    sum: the error of the mean picture's pivot is 1.
    """
    return (predicted.float() - target.float()).square().mean()


def prompt_error(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """PRIP's second stage: -log p of pictures' prompts given their pivots. `logits` (B, T, V), `tokens` and
    `mask` (B, T), where a mask of 0 leaves a token out -> a number, in float32.

    Source: arXiv 2407.00247, eq. 7, with the mean over the batch's tokens in place of the sum over a
    prompt's.
    """
    from torch.nn.functional import cross_entropy

    each = cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    return each[mask.flatten().bool()].mean()


def gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """(advantages, returns) of each token, (B, T) both, 0 where the mask is.

    Source: generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438), eq. 16, with gamma 1
    and one reward, at the end:
        A_t = sum_k lam^k delta_{t+k},  delta_t = r_t + V_{t+1} - V_t,  returns = A + V
    `rewards` (B,) are paid with the last token; `values` (B, T) predict before each token what is to come;
    `mask` (B, T) is 1 for a row's tokens, from the left without gaps, and 0 beyond its end.
    """
    import torch

    mask = mask.to(values.dtype)
    values = torch.where(mask > 0, values, 0.0)  # beyond the end there may be NaN
    last = mask.sum(1) - 1
    advantages = torch.zeros_like(values)
    ahead = next_value = torch.zeros_like(rewards)
    for t in reversed(range(values.shape[1])):
        paid = torch.where(last == t, rewards, 0.0)
        ahead = (paid + next_value - values[:, t] + lam * ahead) * mask[:, t]
        advantages[:, t], next_value = ahead, values[:, t]
    return advantages, advantages + values


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """Rewards (N,) less the mean reward of the others of their group (N,) of whole numbers; 0 for one alone.

    Source: RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740, eq. 8).
    """
    import torch

    places = groups.unique(return_inverse=True)[1]
    counts = torch.bincount(places).to(rewards)[places]
    sums = torch.zeros_like(rewards).index_add(0, places, rewards)[places]
    return torch.where(counts > 1, rewards - (sums - rewards) / (counts - 1).clamp_min(1), 0.0)


def whiten(numbers: Tensor) -> Tensor:
    """Numbers (N,) less their mean, over their standard deviation (n - 1); zeros where they do not vary."""
    import torch

    centred = numbers - numbers.mean()
    std = centred.square().sum().div(max(1, len(numbers) - 1)).sqrt()
    return centred / std if std > 1e-6 else torch.zeros_like(numbers)


def clipped_surrogate(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """PPO's (losses, ratios) of tokens, all (N,).

    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7, as a loss:
        -min(rho A, clamp(rho, 1 - clip, 1 + clip) A),  rho = exp(logps - old_logps)
    """
    import torch

    ratios = (logps - old_logps).exp()
    clipped = ratios.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratios * advantages, clipped * advantages), ratios


def clipped_value_error(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """The value head's losses of tokens, all (N,): 1/2 max((V - R)^2, (V_clipped - R)^2), where V_clipped
    keeps within `clip` of the old value.

    Source: arXiv 1707.06347, eq. 9, clipped as in OpenAI's baselines (ppo2/model.py; Engstrom et al. 2020,
    arXiv 2005.12729, section 3, eq. 1).
    """
    import torch

    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def kl_k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """KL(policy || reference) estimated at tokens that the policy drew, (N,), never below 0.

    Source: Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html), k3; GRPO (arXiv
    2402.03300), eq. 4:
        exp(d) - d - 1,  d = reference_logps - logps
    Its value is unbiased. As a term of a loss its gradient is, on average, that of KL(reference || policy).
    """
    apart = reference_logps - logps
    return apart.expm1() - apart


def answer_loss(logprobs: Tensor, yes: Tensor) -> Tensor:
    """Losses (B,) of answers that should be yes where `yes` (B,) is True, and else no.

    `logprobs` (B, 2) are those of all tokens that mean yes, and of all that mean no, among all tokens:
        -log p_yes = -log(p_yes / (p_yes + p_no)) - log(p_yes + p_no),
    the cross-entropy of the share that is the judge's score (VQAScore, arXiv 2404.01291, reads one token),
    and of answering with yes or no at all.
    """
    import torch

    return -torch.where(yes, logprobs[:, 0], logprobs[:, 1])


def token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens `ids` (T,) under `logits` (T, V)."""
    from torch.nn import functional

    return functional.cross_entropy(logits, ids)


def _along(numbers: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, …), to multiply `like` (B, …) by."""
    return numbers.to(like).view(-1, *[1] * (like.ndim - 1))
