"""A tiny FLUX, settings of rounds that train it, and a store of pairs."""

import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.preferences.store import Pair, PairPicture, Store
from reprise.backend.training.diffusion_dpo.config import DiffusionDpoConfig

from ...renderers.conftest import build

COLORS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.1, 0.9]])  # liked, and not


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "flux"
    build("flux").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def values(model, tmp_path_factory):
    """Two rounds of four prompts, four pictures each, two prompts at once."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "train.txt").write_text("a cat\na dog\n" + '{"prompt": "an owl", "judged_as": "owl"}\na fox\n')
    (folder / "eval.txt").write_text("a cow\na bee\n")
    return {
        "model": str(model),
        "max_steps": 3,
        "batch_size": 2,
        "accumulation": 1,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "device": "cpu",
        "save_every": 2,
        "gradient_checkpointing": False,
        "beta": 200.0,
        "margin": 0.001,
        "max_sequence_length": 20,
        "lora": {"r": 2, "alpha": 3, "targets": "blocks"},
        "rounds": {
            "count": 2,
            "prompts": str(folder / "train.txt"),
            "eval_prompts": str(folder / "eval.txt"),
            "images": 4,
            "eval_images": 2,
            "rewards": {"redness": 1.0},
            "held_out": ["blueness"],
            "renderer": {"steps": 2, "size": 64, "guidance": 3.5, "batch": 8},
        },
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Six pairs of 16 x 16 pictures: red ones were liked better than blue ones."""
    made, random = Store(tmp_path_factory.mktemp("store"), create=True), torch.Generator().manual_seed(0)
    pairs = []
    for i in range(6):
        sides = [made.put_image(color + 0.1 * torch.rand(16, 16, 3, generator=random)) for color in COLORS]
        better, worse = (
            PairPicture(image=image, drawn_as="a cat", score=1.0 - j) for j, image in enumerate(sides)
        )
        pairs.append(
            Pair(
                prompt=f"cat {i}",
                condition=f"a cat {i % 2}",
                chosen=better,
                rejected=worse,
                reward="redness",
                margin=1.0,
                source="render",
                run="out/a",
            )
        )
    made.add(pairs)
    return made


def settings(folder, store, **changes):
    return DiffusionDpoConfig(
        **{
            "model": str(folder),
            "preferences": store.folder,
            "max_steps": 4,
            "batch_size": 2,
            "accumulation": 1,
            "learning_rate": 1e-2,
            "warmup_ratio": 0.0,
            "device": "cpu",
            "save_every": 2,
            "gradient_checkpointing": False,
            "lora": {"r": 2, "alpha": 4},
            **changes,
        }
    )


def quiet(line):
    pass


def rows(run, name="metrics.jsonl"):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def lora_of(run):
    (file,) = (run / "final").glob("*.safetensors")
    return file


def same(one, other):
    one, other = load_file(lora_of(one)), load_file(lora_of(other))
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def answer(loop, adapter=True):
    """What a loop's denoiser says of one noisy latent."""
    noise, u = loop._noise([0])
    row = loop.encoded.condition(loop.pairs[0].condition)
    condition = loop.denoiser.conditions([row], torch.device("cpu"), torch.float32)
    with torch.no_grad(), nullcontext() if adapter else loop.model.disable_adapter():
        return loop.denoiser(noise, loop.noising.at(u)[2], condition)
