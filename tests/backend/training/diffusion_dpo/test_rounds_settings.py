"""What rounds of Diffusion-DPO refuse before anything is drawn, and how their renderer is set."""

import re

import pytest
import torch
from safetensors.torch import save_file

from reprise.backend.core.config import parse_config
from reprise.backend.core.errors import BadInput, CheckpointError, Unsupported
from reprise.backend.core.types import RewardCapabilities, RewardSpec
from reprise.backend.renderers.diffusers.lora import BLOCKS
from reprise.backend.training.diffusion_dpo import rounds as diffusion_dpo_rounds
from reprise.backend.training.diffusion_dpo.config import DiffusionDpoConfig
from reprise.backend.training.diffusion_dpo.train import train

from ...renderers.conftest import build
from ..world import Redness


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def changed(values, rounds=None, **changes):
    return DiffusionDpoConfig(**{**values, **changes, "rounds": {**values["rounds"], **(rounds or {})}})


def quiet(line):
    pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preferences": "p"}, "give one of the two"),
        ({"rounds": None}, "give one of the two"),
        ({"reward": "redness"}, "leave reward out"),
        ({"weigh_by": "greenness"}, "add it to rounds.held_out"),
        ({"rounds": {"renderer": {"name": "shapeworld"}, "prompts": "p"}}, None),
        ({"rounds": {"renderer": {"name": "other/model"}, "prompts": "p"}}, "leave rounds.renderer.name out"),
        ({"rounds": {"renderer": {"lora": "l"}, "prompts": "p"}}, "leave rounds.renderer.lora out"),
        ({"rounds": {"rewards": {"nothing": 1.0}, "prompts": "p"}}, "nothing"),
        ({"rounds": {"rewards": {}, "prompts": "p"}}, "no reward looks at the pictures"),
        ({"rounds": {"images": 1, "prompts": "p"}}, "images"),
        ({"rounds": {"rewards": {"redness": 1.0, "length": 1.0}, "prompts": "p"}}, "reads rewrites"),
        ({"judge": {"reward": "redness"}}, "gives no gradient through pixels"),
        ({"judge": {"reward": "remote:image-reward@http://h"}}, "gives no gradient through the network"),
        ({"model": "comfyui:workflow.json@http://h"}, "has no weights that can be trained"),
        ({"model": "fake"}, "has no weights that can be trained"),
        ({"rounds": {"offload": True, "prompts": "p"}}, "device=cpu puts none"),
    ],
)
def test_impossible_settings(changes, message, values):
    if message is None:
        assert parse_config(DiffusionDpoConfig, {**values, **changes}, "test")
        return
    with pytest.raises(BadInput, match=message):
        parse_config(DiffusionDpoConfig, {**values, **changes}, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "shapeworld-masked"}, "no training is known for AmusedPipeline"),
        ({"model": "/no/where"}, "expected a pipeline's folder"),
        ({"start": 2, "lora": {"r": 4, "targets": "blocks"}}, "adapter of rank 2 .* asks for rank 4"),
        ({"start": 0}, "is empty"),
        ({"size": 99}, "size=99 is no multiple"),
        ({"model": "shapeworld-sd", "shift": 2.0}, "shift is for flows"),
        ({"model": "shapeworld-sd", "guidance": 2.0}, "no guidance embedding"),
        ({"model": "shapeworld", "size": 64}, "'shapeworld' draws with size=128 alone, got 64; leave it out"),
        ({"model": "shapeworld", "max_sequence_length": 20}, "max_sequence_length=48 alone, got 20"),
    ],
)
def test_impossible_trainings_are_refused_before_anything_is_drawn(changes, message, values, tmp_path):
    rounds = dict(values["rounds"])
    if "start" in changes:
        file, flux = tmp_path / "start.safetensors", build("flux").transformer
        sizes = {name: one.weight.shape for name, one in flux.named_modules() if re.fullmatch(BLOCKS, name)}
        halves = {
            f"transformer.{name}.lora_{half}.weight": torch.ones(shape)
            for name, (high, wide) in sizes.items()
            for half, shape in (("A", (2, wide)), ("B", (high, 2)))
        }
        save_file(halves if changes["start"] else {}, file)
        changes = {**changes, "start": file}
    if "model" in changes:
        rounds["renderer"], changes = {"steps": 2}, {"max_sequence_length": None, **changes}
    with pytest.raises((BadInput, CheckpointError, Unsupported), match=message):
        train(changed(values, rounds, **changes), tmp_path / "run", log=quiet)
    assert not (tmp_path / "run").exists()


def test_a_renderers_fixed_settings_may_be_given(values, tmp_path):
    config = changed(values, {"renderer": {"steps": 2}}, model="shapeworld", size=128, max_sequence_length=48)
    renderer = diffusion_dpo_rounds.DiffusionDpoRounds(
        config, config.rounds, tmp_path / "run", quiet
    ).renderer(None)
    assert (renderer.width, renderer.max_sequence_length) == (128, 48)


class OnItsDevice(Redness):
    spec = RewardSpec("redness", 0.0, 1.0)
    capabilities = RewardCapabilities(weights=True)

    def __init__(self, device=None, dtype=None):
        self.device = device


def test_the_renderer_draws_as_it_is_trained(values, tmp_path, monkeypatch):
    """In the dtype of the training, and with device=cpu neither it nor a judge looks for a GPU."""
    from reprise.backend.core.registry import REWARDS

    monkeypatch.setitem(REWARDS, "redness", f"{__name__}:OnItsDevice")
    opened, real = [], diffusion_dpo_rounds.open_renderer

    def watched(settings, device):
        opened.append((settings.dtype, device))
        return real(settings, device)

    monkeypatch.setattr(diffusion_dpo_rounds, "open_renderer", watched)
    for asked, own in (("bfloat16", "auto"), ("auto", "auto"), ("bfloat16", "float32")):
        renderer = {**values["rounds"]["renderer"], "dtype": own}
        config = changed(values, {"renderer": renderer}, dtype=asked)
        made = diffusion_dpo_rounds.DiffusionDpoRounds(config, config.rounds, tmp_path / "run", quiet)
        assert made.rewards["redness"].device == "cpu"
        dtype = made.renderer(None).pipeline.transformer.dtype
        assert str(dtype) == f"torch.{own if own != 'auto' else 'float32' if asked == 'auto' else asked}"
    assert opened == [("bfloat16", "cpu"), ("float32", "cpu"), ("float32", "cpu")]


def test_a_reward_of_texts_is_refused_and_leaves_nothing(values, tmp_path):
    with pytest.raises(ValueError, match="reads rewrites"):
        train(changed(values, {"rewards": {"redness": 1.0, "length": 1.0}}), tmp_path / "run", log=quiet)
    assert not (tmp_path / "run").exists()
