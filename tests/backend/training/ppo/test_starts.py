"""What PPO starts from, and settings that cannot be."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprise.backend.core.config import parse_config
from reprise.backend.core.errors import BadInput, CheckpointError, UnknownName, Unsupported
from reprise.backend.rewriters.prip.model import Prip
from reprise.backend.rewriters.prip.presets import build
from reprise.backend.training.common.run_folder import claim_run_folder
from reprise.backend.training.ppo.config import PpoConfig
from reprise.backend.training.ppo.loop import PpoLoop
from reprise.backend.training.ppo.train import train

from ...rewriters.prip.tiny_prip import TINY, save, tokenizers
from ..grpo.test_train import quiet, rows


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    torch.set_num_threads(1)
    return save(tmp_path_factory.mktemp("refiner") / "start")


@pytest.fixture(scope="module")
def values(refiner, prompts):
    return {
        "init": str(refiner),
        "prompts": str(prompts),
        "renderer": {"name": "words"},
        "rewards": {"redness": 1.0},
        "prompts_per_step": 4,
        "rewrites": 2,
        "max_steps": 1,
        "warmup_ratio": 0.0,
        "max_new_tokens": 4,
        "critic_width": 8,
        "device": "cpu",
    }


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without_statistics(where):
    edit(where, lambda tensors: [tensors.pop(name) for name in ("pivot_mean", "pivot_std")])


def other_decoder(where):
    wide = {**TINY.decoder, "hidden_size": 64}
    build(replace(TINY, decoder=wide), *tokenizers()).decoder.save_pretrained(where / "decoder")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_statistics, "has no pivot statistics .* train the refiner's first stages"),
        (other_decoder, "is 64 wide, this refiner's projector writes 32; put the decoder back"),
        (lambda where: shutil.rmtree(where), "no refiner at"),
    ],
)
def test_refiners_that_cannot_be_started_from(spoil, message, values, refiner, tmp_path):
    where = shutil.copytree(refiner, tmp_path / "start")
    spoil(where)
    with pytest.raises(CheckpointError, match=message) as caught:
        train(PpoConfig(**{**values, "init": str(where)}), tmp_path / "run", log=quiet)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_half_precision_and_storage(values, tmp_path):
    """As on a GPU: the decoder in bfloat16, the encoder in float32; what is written is float16."""
    changes = {"dtype": "bfloat16", "export_dtype": "float16"}
    config = PpoConfig(**{**values, **changes})
    loop = PpoLoop(config, tmp_path / "looked-at", False, quiet)
    assert {one.dtype for one in loop.model.encoder.parameters()} == {torch.float32}
    assert {one.dtype for one in loop.model.decoder.parameters()} == {torch.bfloat16}
    final = train(config, tmp_path / "run", log=quiet)
    [row] = rows(tmp_path / "run")
    assert row["ratio_off"] < 0.1 and row["kl"] < 0.01
    kept = load_file(final / "encoder" / "model.safetensors").values()
    assert {one.dtype for one in kept} == {torch.float16}
    Prip.from_pretrained(final)


@pytest.mark.parametrize("stored", ["same", "float32"])
def test_frozen_parts_keep_their_precision(values, refiner, tmp_path, stored):
    """It works in bfloat16, and is written as it was read."""
    config = PpoConfig(**{**values, "dtype": "bfloat16", "export_dtype": stored})
    final = train(config, tmp_path / "run", log=quiet)
    for part in (".", "decoder"):
        before, after = (load_file(where / part / "model.safetensors") for where in (refiner, final))
        for name in before:
            if not name.startswith("encoder."):
                assert torch.equal(before[name], after[name]), name


def test_a_vision_language_model_may_be_the_judge(values, tmp_path):
    """Its name holds its folder's; one that is not there is said in a line."""
    config = {**values, "rewards": {f"vlm:{tmp_path / 'none'}": 1.0}, "held_out": []}
    with pytest.raises(BadInput, match="there is no folder .*none"):
        parse_config(PpoConfig, config, "settings")


def test_prompts_that_cannot_be_trained_on(values, tmp_path):
    files = {name: tmp_path / f"{name}.txt" for name in ("shared", "long", "blank", "mark")}
    files["shared"].write_text("a square\na star\n")
    files["long"].write_text("a star " * 200)
    files["blank"].write_text("\n \n")
    files["mark"].write_text("<|im_end|>\n")
    for changes, message in (
        ({"eval_prompts": str(files["shared"])}, "'a star' is trained on"),
        ({"prompts": str(files["long"])}, "this refiner reads 32; shorten it"),
        ({"prompts": str(files["blank"])}, "holds no prompts"),
        ({"prompts": str(files["mark"])}, "the prompt is empty"),
    ):
        with pytest.raises(BadInput, match=message):
            train(PpoConfig(**{**values, **changes}), tmp_path / "run", log=quiet)
        assert not (tmp_path / "run").exists()


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatches": 3}, "divisor of 8"),
        ({"rewards": {"length": 1}}, "no reward looks"),
        ({"rewards": {"redness": 1, "structure": 1}}, "take 'structure' out"),
        ({"rewards": {"rednes": 1}}, "did you mean 'redness'"),
        ({"held_out": ["redness"]}, "one of the two"),
        ({"rewards": {"redness": 0}}, "redness: input should be greater"),
        ({"offload": True}, "offload"),
        ({"kl": 0, "kl_target": 0.1}, "set kl=0.05"),
        ({"gae_lambda": 2}, "gae_lambda"),
        ({"clip": 0}, "clip"),
        ({"scheduler": "constant", "warmup_ratio": 0.1}, "warmup_ratio=0"),
        ({"max_dropped": 1}, "max_dropped"),
    ],
)
def test_impossible_settings_are_refused_with_a_remedy(changes, message, values):
    with pytest.raises(BadInput, match=message):
        parse_config(PpoConfig, {**values, **changes}, "test")


def test_unknown_settings_are_refused_with_the_near_match(values):
    with pytest.raises(UnknownName, match="did you mean 'rewrites'"):
        parse_config(PpoConfig, {**values, "rewrits": 4}, "test")


def test_one_process(values, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Unsupported, match="one process"):
        train(PpoConfig(**values), tmp_path / "run", log=quiet)


def test_a_used_folder_is_refused_before_anything_is_loaded(values, tmp_path):
    claim_run_folder(tmp_path / "run", "max_steps: 1\n", False)
    with pytest.raises(BadInput, match="holds a run already"):
        train(PpoConfig(**values), tmp_path / "run", log=quiet)
