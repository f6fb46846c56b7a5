"""PARM guidance: weights of pairs, and a judge's gradient through a decoded picture."""

import pytest
import torch
from torch import nn

from reprise.backend.core.errors import BadInput, Unsupported
from reprise.backend.core.registry import REWARDS, resolve
from reprise.backend.core.types import RewardCapabilities, RewardSpec
from reprise.backend.preferences.store import Pair, PairPicture, Store
from reprise.backend.rewards.base import LearnedJudge
from reprise.backend.rewards.published.preprocess import center_crop
from reprise.backend.rewards.shapeworld import ShapeWorldSoft
from reprise.backend.training.common.losses import denoising_target, noised, predicted_clean
from reprise.backend.training.diffusion_dpo.config import DiffusionDpoConfig, JudgeGradient
from reprise.backend.training.diffusion_dpo.denoisers import noising_of
from reprise.backend.training.diffusion_dpo.guidance import Guide, clear_enough, importance
from reprise.backend.training.diffusion_dpo.loop import DiffusionDpoLoop
from reprise.backend.training.diffusion_dpo.train import train

from ...renderers.conftest import build
from ...rewards.conftest import golden, installed, published  # noqa: F401  fixtures


class Colour(LearnedJudge):
    """How a picture's channels, weighted, look; 0..1."""

    spec = RewardSpec("colour", -1.0, 1.0)
    capabilities = RewardCapabilities(gradient=True)

    def __init__(self):
        self.model = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor([[0.5, -0.2, 0.1]]))

    def prepare(self, picture):
        return center_crop(picture, 24)

    def rate(self, pixels, prompts):
        assert all(prompts)
        return self.model(pixels.mean((2, 3)))[:, 0]


class Odd(Colour):
    spec = RewardSpec("odd", -1.0, 1.0)

    def prepare(self, picture):
        return -center_crop(picture, 24)


def pair(number, better=0.9, worse=0.1, margin=0.8, images=("a" * 64, "b" * 64), **scores):
    sides = [
        PairPicture(image=image, drawn_as="x", score=score, scores={k: v[i] for k, v in scores.items()})
        for i, (image, score) in enumerate(zip(images, (better, worse)))
    ]
    return Pair(
        prompt=f"x {number}",
        condition=f"x {number}",
        chosen=sides[0],
        rejected=sides[1],
        reward="r",
        margin=margin,
        source="render",
        run="a",
    )


def test_weights_by_hand():
    pairs = [pair(0, margin=0.1), pair(1, margin=0.3), pair(2, margin=0.8)]
    found = importance(pairs, "margin")
    assert [found[one.id] for one in pairs] == pytest.approx([0.25, 0.75, 2.0])
    assert importance(pairs, None) == {}
    # By another judge: what it would turn round counts for nothing.
    pairs = [pair(0, judge=(0.9, 0.5)), pair(1, judge=(0.2, 0.6)), pair(2, judge=(0.7, 0.5))]
    found = importance(pairs, "judge")
    assert [found[one.id] for one in pairs] == pytest.approx([2.0, 0.0, 1.0])
    pairs = [pair(0, **{"vlm:x#critique": (0.9, 0.5)})]
    assert importance(pairs, "vlm:x") == importance(pairs, "vlm:x#critique") == {pairs[0].id: 1.0}
    with pytest.raises(BadInput, match="prefers the better picture of no pair"):
        importance([pair(0, judge=(0.2, 0.6))], "judge")
    with pytest.raises(BadInput, match="2 of the pairs' 4 pictures .*; expected margin, judge"):
        importance([pair(0, judge=(1, 0), other=(1, 0)), pair(1, judge=(1, 0))], "other")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_the_right_prediction_gives_the_clean_picture(prediction):
    clean, noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).chunk(2)
    sigma = torch.tensor([0.6])
    signal = 1 - sigma if prediction == "flow" else (1 - sigma**2).sqrt()
    target = denoising_target(prediction, clean, noise, signal, sigma)
    found = predicted_clean(prediction, noised(clean, noise, signal, sigma), target, signal, sigma)
    torch.testing.assert_close(found, clean)


class Pixels(nn.Module):
    """A decoder whose latents are pixels."""

    config = type("Config", (dict,), {"scaling_factor": 1.0})()

    def decode(self, latents, return_dict=False):
        return (latents * 2 - 1,)


@pytest.mark.parametrize("name", ["image-reward", "hps-v2.1", "pick-score", "clip-score"])
def test_judges_like_clip_have_a_gradient(name, installed):  # noqa: F811
    """The guide says what the judge says, and what to change."""
    judge = resolve("reward", REWARDS, name)(device="cpu")
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    guide = Guide(JudgeGradient(reward=name), Pixels(), judge, picture)
    latents = picture.permute(2, 0, 1)[None].clone().requires_grad_()
    (said,) = guide(latents, ["a red circle"])
    said.backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0
    assert all(weight.grad is None for weight in judge.model.parameters())
    spec, (score,) = judge.spec, judge.score(picture[None], ["a red circle"])
    expected = (score - spec.low) / (spec.high - spec.low)
    assert said.item() == pytest.approx(expected, abs=0.05)


def test_a_judge_without_a_gradient_is_refused():
    square, settings = torch.rand(32, 32, 3), JudgeGradient(reward="image-reward")
    with pytest.raises(Unsupported, match="no gradient"):
        Guide(settings, Pixels(), ShapeWorldSoft(), square)
    with pytest.raises(Unsupported, match="square"):
        Guide(settings, Pixels(), Colour(), torch.rand(32, 48, 3))
    with pytest.raises(Unsupported, match="a way of its own"):
        Guide(settings, Pixels(), Odd(), square)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny FLUX, and four pairs of pictures with unlike margins, in which red was liked."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("guided")
    build("flux").save_pretrained(folder / "model")
    made, random = Store(folder / "store", create=True), torch.Generator().manual_seed(0)
    pairs = []
    for i in range(4):
        images = [
            made.put_image(torch.tensor(color) + 0.1 * torch.rand(16, 16, 3, generator=random))
            for color in ((0.9, 0.1, 0.1), (0.1, 0.1, 0.9))
        ]
        pairs.append(pair(i, margin=0.1 + 0.2 * i, images=images, judge=(0.8, 0.4)))
    made.add(pairs)

    def settings(**changes):
        return DiffusionDpoConfig(
            **{
                "model": str(folder / "model"),
                "preferences": folder / "store",
                "max_steps": 2,
                "batch_size": 4,
                "accumulation": 1,
                "learning_rate": 1e-2,
                "warmup_ratio": 0.0,
                "device": "cpu",
                "gradient_checkpointing": False,
                "lora": {"r": 2, "alpha": 2},
                **changes,
            }
        )

    return settings


def quiet(line):
    pass


def test_equal_weights_are_plain_dpo(world, tmp_path):
    """Bit for bit; unlike ones are not."""
    from safetensors.torch import load_file

    made = {}
    for name, weigh_by in (("plain", None), ("alike", "judge"), ("margins", "margin")):
        final = train(world(weigh_by=weigh_by), tmp_path / name, log=quiet)
        made[name] = load_file(final / "lora.safetensors")
    assert all(torch.equal(made["plain"][key], made["alike"][key]) for key in made["plain"])
    assert not all(torch.equal(made["plain"][key], made["margins"][key]) for key in made["plain"])


def test_a_pairs_loss_is_multiplied_by_its_weight(world, tmp_path):
    plain, weighted = (
        DiffusionDpoLoop(world(weigh_by=by), tmp_path, False, quiet) for by in (None, "margin")
    )
    noise, u = plain._noise(range(4))
    one, other = (loop._losses(loop.pairs, noise, u)[0] for loop in (plain, weighted))
    assert (other / one).tolist() == pytest.approx([0.25, 0.75, 1.25, 1.75])
    with torch.no_grad():  # evaluations are not guided
        torch.testing.assert_close(weighted._losses(plain.pairs, noise, u)[0], one)


@pytest.mark.parametrize("prediction", ["flow", "epsilon"])
def test_a_latent_is_clear_with_less_noise_than_picture(prediction):
    """Of a flow where sigma is below until; of a diffusion, whose sigma is .85 half-way, well before that."""
    pipe = build("sd3" if prediction == "flow" else "sd1")
    noising = noising_of(pipe, (8, 8), 1.0 if prediction == "flow" else None)
    assert noising.prediction == prediction
    u = torch.tensor([0.05, 0.2, 0.3, 0.4, 0.49, 0.51, 0.9])
    signal, sigma, _ = noising.at(u)
    found = clear_enough(signal, sigma, 0.5).tolist()
    assert found == ([0, 1, 2, 3, 4] if prediction == "flow" else [0, 1, 2])
    assert all((signal[i] > sigma[i]) == (i in found) for i in range(len(u)))
    assert clear_enough(signal, sigma, 1.0).tolist() == list(range(len(u)))


def test_a_judges_gradient_reaches_only_the_adapter(world, tmp_path, monkeypatch):
    monkeypatch.setitem(REWARDS, "colour", f"{__name__}:Colour")
    judge = {"reward": "colour", "weight": 0.5}
    plain, guided = (DiffusionDpoLoop(world(judge=given), tmp_path, False, quiet) for given in (None, judge))
    noise, u = plain._noise(range(4))[0], torch.tensor([0.1, 0.3, 0.6, 0.9])
    (before, _), (after, figures) = (loop._losses(loop.pairs, noise, u) for loop in (plain, guided))
    clear = u < 0.5  # of this flow, sigma is u
    added = after - before
    assert torch.equal(added[~clear], torch.zeros_like(added[~clear])) and (added[clear] != 0).all()
    assert figures["judge"] == pytest.approx((-added[clear] / 0.5).mean().item(), rel=1e-4)
    added.sum().backward()
    halves = {name: weight.grad for name, weight in guided.weights.items()}
    # Before the first step only B has one: A is multiplied by it, and it is 0.
    assert any(grad is not None and grad.abs().max() > 0 for name, grad in halves.items() if "lora_B" in name)
    assert all(weight.grad is None for name, weight in guided.model.named_parameters() if "lora_" not in name)
    assert all(
        one.grad is None
        for module in (guided.guide.vae, guided.guide.judge.model)
        for one in module.parameters()
    )
    train(world(judge=judge), tmp_path / "run", log=quiet)
    assert "judge" in (tmp_path / "run" / "metrics.jsonl").read_text()
