"""The build's step loop: killed and resumed is never killed, bit for bit; the learning rate; Muon."""

import pytest
import torch
from torch import nn

from reprise.backend.lab.weights.muon import Muon, orthogonalise
from reprise.backend.lab.weights.training import WeightsLoop, cosine


class Killed(Exception):
    pass


def train(checkpoint, until=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizers = [Muon(matrices, lr=0.01), torch.optim.AdamW(vectors, lr=0.01)]
    loop = WeightsLoop(
        model, optimizers, checkpoint, total=12, seed=3, warmup=4, save_every=0.0, log=lambda line: None
    )

    def take_step(rng, step):
        if step == until:
            raise Killed
        x = torch.randn(5, 4) * rng.random()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        return loss.item()

    try:
        loop.run(take_step)
    except Killed:
        pass
    return model


@pytest.mark.parametrize("until", [1, 5, 11])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, until):
    whole = train(tmp_path / "a.ckpt").state_dict()
    train(tmp_path / "b.ckpt", until)
    resumed = train(tmp_path / "b.ckpt").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list(tmp_path.glob("*.tmp"))


def test_the_cosine_schedule_equals_the_hand_calculation():
    assert cosine(0, 100, 10) == 0.1 and cosine(9, 100, 10) == 1.0
    assert cosine(10, 110, 10) == pytest.approx(1.0) and cosine(60, 110, 10) == pytest.approx(0.51)
    assert cosine(110, 110, 10) == pytest.approx(0.02)


def test_newton_schulz_brings_singular_values_near_one():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 16, 40)))
    assert values.min() > 0.5 and values.max() < 1.3  # the quintic's own spread


def test_muon_updates_a_kernel_like_its_matrix():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(4, 2, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn(4, 18)
    kernel.grad, matrix.grad = gradient.view(4, 2, 3, 3), gradient
    for p in (kernel, matrix):
        Muon([p], lr=0.01).step()
    assert torch.allclose(kernel.flatten(1), matrix)
