"""Losses against values worked out by hand."""

import math

import pytest
import torch

from reprise.backend.training.common.losses import (
    clipped_surrogate,
    clipped_value_error,
    denoising_error,
    denoising_target,
    diffusion_dpo,
    gae,
    kl_k3,
    leave_one_out,
    noised,
    pivot_error,
    prompt_error,
    whiten,
)

# Two samples of two numbers; a 3-4-5 triangle, so that signal^2 + sigma^2 = 1.
CLEAN = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
NOISE = torch.tensor([[0.5, -1.0], [2.0, 1.0]])
SIGNAL, SIGMA = torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6])


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_noised():
    # .6 * 1 + .8 * .5, .6 * 2 - .8; .6 * 2, -.8 + .6
    close(noised(CLEAN, NOISE, SIGNAL, SIGMA), [[1.0, 0.4], [1.2, -0.2]])
    close(noised(CLEAN, NOISE, 1 - SIGMA, SIGMA), [[0.6, -0.4], [1.2, 0.2]])


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("epsilon", [[0.5, -1.0], [2.0, 1.0]]),
        # .6 * .5 - .8 * 1, -.6 - .8 * 2; .8 * 2, .8 + .6
        ("v_prediction", [[-0.5, -2.2], [1.6, 1.4]]),
        ("flow", [[-0.5, -3.0], [2.0, 2.0]]),
    ],
)
def test_targets(prediction, expected):
    close(denoising_target(prediction, CLEAN, NOISE, SIGNAL, SIGMA), expected)


def test_targets_of_pictures_are_taken_sample_by_sample():
    clean, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    x = noised(clean, noise, SIGNAL, SIGMA)
    torch.testing.assert_close(x[1], 0.8 * clean[1] + 0.6 * noise[1])
    v = denoising_target("v_prediction", clean, noise, SIGNAL, SIGMA)
    # From x and v both clean and noise come back (arXiv 2202.00512).
    torch.testing.assert_close(0.8 * x[1] - 0.6 * v[1], clean[1])
    torch.testing.assert_close(0.6 * x[1] + 0.8 * v[1], noise[1])


def test_an_error_is_a_mean_over_a_samples_numbers():
    close(denoising_error(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 2)), [5.0, 0.0])
    half = torch.full((1, 2, 2), 300.0, dtype=torch.float16)  # its square is beyond float16
    close(denoising_error(half, torch.zeros_like(half)), [90000.0])


@pytest.mark.parametrize(
    ("prediction", "margin"),
    [
        # One pair: the first sample is chosen, the second rejected. The reference says 0 to both; the model
        # says the chosen one's target, and the rejected one's plus 1. The reference's errors are the targets'
        # mean squares: epsilon .625 and 2.5, v 2.545 and 2.26, flow 4.625 and 4. beta 2:
        # margin = -1 * ((0 - reference_chosen) - (1 - reference_rejected))
        ("epsilon", 0.625 + 1 - 2.5),
        ("v_prediction", 2.545 + 1 - 2.26),
        ("flow", 4.625 + 1 - 4.0),
    ],
)
def test_diffusion_dpo_by_hand(prediction, margin):
    target = denoising_target(prediction, CLEAN, NOISE, SIGNAL, SIGMA)
    model = denoising_error(target + torch.tensor([[0.0], [1.0]]), target)
    reference = denoising_error(torch.zeros_like(target), target)
    losses, margins = diffusion_dpo(model[:1], model[1:], reference[:1], reference[1:], beta=2.0)
    close(margins, [margin])
    close(losses, [math.log(1 + math.exp(-margin))])


def test_beta_is_halved_and_pairs_are_independent():
    chosen, rejected = torch.tensor([1.0, 0.2]), torch.tensor([2.0, 0.1])
    zero = torch.zeros(2)
    losses, margins = diffusion_dpo(chosen, rejected, zero, zero, beta=10.0)
    close(margins, [5.0, -0.5])  # -5 * (1 - 2), -5 * (.2 - .1)
    close(losses, [math.log1p(math.exp(-5)), math.log1p(math.exp(0.5))])


def test_at_its_reference_the_loss_is_log_2():
    errors = torch.rand(2, 5)
    losses, margins = diffusion_dpo(*errors, *errors, beta=5000.0)
    assert torch.equal(margins, torch.zeros(5))
    close(losses, [math.log(2)] * 5)


def test_an_error_of_v_is_one_of_epsilon_over_the_signal_squared():
    said = torch.tensor([[0.1, -0.4], [1.0, 0.3]])  # as epsilon
    x = noised(CLEAN, NOISE, SIGNAL, SIGMA)
    as_v = (said - SIGMA[:, None] * x) / SIGNAL[:, None]  # eps = s x + a v
    epsilon = denoising_error(said, NOISE)
    v = denoising_error(as_v, denoising_target("v_prediction", CLEAN, NOISE, SIGNAL, SIGMA))
    torch.testing.assert_close(v, epsilon / SIGNAL.square())


def test_pivot_error_is_a_mean_over_all_numbers():
    imagined = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[0.0, -1.0], [3.0, 0.0]]])  # two of two vectors
    seen = torch.tensor([[[0.0, 2.0], [0.0, 2.0]], [[0.0, 0.0], [1.0, 0.0]]])
    close(pivot_error(imagined, seen), (1 + 4 + 1 + 4) / 8)
    half = torch.full((1, 1, 2), 300.0, dtype=torch.float16)
    close(pivot_error(half, torch.zeros_like(half)), 90000.0)


def test_prompt_error_by_hand():
    # p = 3/4 and 1/4 of two tokens; then 1/2 each; what is masked does not count, not even an impossible one.
    logits = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0]], [[math.log(3), 0.0], [0.0, -torch.inf]]])
    tokens, mask = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[1, 1], [1, 0]])
    close(prompt_error(logits, tokens, mask), -(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 3)


def test_gae_by_hand():
    """Two rows, of three tokens and of one. lam 1/2, values 1, 2, 4 and reward 8:
    delta_3 = 8 - 4 = 4, delta_2 = 4 - 2 = 2, delta_1 = 2 - 1 = 1; A_3 = 4, A_2 = 2 + 4/2, A_1 = 1 + 4/2."""
    values = torch.tensor([[1.0, 2.0, 4.0], [3.0, 99.0, torch.nan]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    found, returns = gae(torch.tensor([8.0, 5.0]), values, mask, lam=0.5)
    close(found, [[3.0, 4.0, 4.0], [2.0, 0.0, 0.0]])
    close(returns, [[4.0, 6.0, 8.0], [5.0, 0.0, 0.0]])


def test_gae_with_lambda_0_and_1():
    values, mask = torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3)
    reward = torch.tensor([8.0])
    close(gae(reward, values, mask, lam=0.0)[0], [[1.0, 2.0, 4.0]])  # one step ahead
    close(gae(reward, values, mask, lam=1.0)[0], [[7.0, 6.0, 4.0]])  # R - V
    # A critic that says 0: the reward, fading towards the beginning.
    close(gae(reward, 0 * values, mask)[0], [[8 * 0.95**2, 8 * 0.95, 8.0]])


def test_leave_one_out():
    """Groups 0: (1, 3, 5), 1: (2) alone, 7: (4, 6)."""
    rewards, groups = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), torch.tensor([0, 1, 0, 7, 0, 7])
    close(leave_one_out(rewards, groups), [1.0 - 4, 0.0, 3.0 - 3, 4.0 - 6, 5.0 - 2, 6.0 - 4])


def test_whiten():
    close(whiten(torch.tensor([1.0, 2.0, 3.0])), [-1.0, 0.0, 1.0])
    close(whiten(torch.tensor([2.0, 2.0])), [0.0, 0.0])
    close(whiten(torch.tensor([7.0])), [0.0])


def test_clipped_surrogate_by_hand():
    """Ratios 1, 3/2, 3/2, 1/2, 1/2 at clip .2: what would go further than 1.2 or .8 counts no more, and only
    where the clipped one is worse."""
    logps = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    losses, ratios = clipped_surrogate(logps, torch.zeros(5), torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0]), 0.2)
    close(ratios.detach(), [1.0, 1.5, 1.5, 0.5, 0.5])
    close(losses.detach(), [-2.0, -2.4, 3.0, -1.0, 1.6])
    losses.sum().backward()
    assert logps.grad is not None
    close(logps.grad, [-2.0, 0.0, 3.0, -1.0, 0.0])  # -A rho, or nothing where it was clipped


def test_clipped_value_error_by_hand():
    """Old value 1, clip .2. To 2 with return 2 it may not jump: (1.2 - 2)^2; away from 0 it pays in full."""
    values = torch.tensor([2.0, 2.0, 1.1]).requires_grad_()
    found = clipped_value_error(values, torch.ones(3), torch.tensor([2.0, 0.0, 3.0]), 0.2)
    close(found.detach(), [0.5 * 0.8**2, 0.5 * 4, 0.5 * 1.9**2])
    found.sum().backward()
    assert values.grad is not None
    close(values.grad, [0.0, 2.0, -1.9])


def test_kl_k3_by_hand():
    """p = 1/2 under the policy: 1/4, 1/2 and 1 under the reference."""
    found = kl_k3(torch.full((3,), 0.5).log(), torch.tensor([0.25, 0.5, 1.0]).log())
    close(found, [0.5 - 1 + math.log(2), 0.0, 2 - 1 - math.log(2)])


def test_kl_k3_is_unbiased():
    policy, reference = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.3, 0.1])
    logps = policy.log().requires_grad_()
    mean = (policy * kl_k3(logps, reference.log())).sum()
    close(mean.detach(), float((policy * (policy / reference).log()).sum()))
    mean.backward()
    assert logps.grad is not None
    close(logps.grad, (policy - reference).tolist())  # of KL(reference || policy)
