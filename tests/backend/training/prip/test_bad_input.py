"""What PRIP's trainings refuse, and how they say it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprise.backend.core.config import parse_config
from reprise.backend.core.errors import BadInput, CheckpointError, TrainingFailed
from reprise.backend.rewriters.prip.model import Prip
from reprise.backend.rewriters.prip.vision import ImagePivot

from ...rewriters.prip.tiny_prip import TINY, save
from .. import pictures
from .stages import STAGES, settings, train


def test_a_loss_of_nan_stops_the_run(log, refiner, tmp_path, monkeypatch):
    for stage in STAGES:
        module = STAGES[stage][0]
        name = "pivot_error" if stage == "encoder" else "prompt_error"
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, right=right: right(*given) * float("nan"))
        with pytest.raises(TrainingFailed, match="the loss of step 1 is nan; lower learning_rate, and begin"):
            train(stage, settings(stage, log, refiner, eval_share=0), tmp_path / stage)


def test_a_full_disk(log, refiner, tmp_path, monkeypatch):
    def full(tensors, path, *rest, **options):
        if Path(path).name == "optimizer.safetensors":
            raise OSError(28, "No space left on device")
        return save_file(tensors, path, *rest, **options)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(
        TrainingFailed,
        match="no space left to write .*checkpoint-2.*make room, and --resume .* from the start",
    ):
        train("encoder", settings("encoder", log, refiner), tmp_path)


def without(refiner, folder, change):
    shutil.copytree(refiner, folder)
    change(folder)
    return folder


def drop_statistics(folder):
    kept = load_file(folder / "model.safetensors")
    save_file({name: one for name, one in kept.items() if name != "pivot_std"}, folder / "model.safetensors")


def other_decoder(folder):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {key: value for key, value in TINY.decoder.items() if key != "model_type"}
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model("qwen2", **{**config, "hidden_size": 16, "vocab_size": 2048})
    ).save_pretrained(folder / "decoder")


def other_tower(folder):
    config = TINY.image.model_copy(update={"queries": 3})
    ImagePivot(config).save_pretrained(folder / "image")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_statistics, "has no pivot statistics"),
        (other_decoder, "is 16 wide, this refiner's projector writes 32"),
        (other_tower, "pivots of 3 x 24, this refiner reads 5 x 24"),
        (lambda folder: shutil.rmtree(folder / "image"), "no vision tower at"),
        (lambda folder: shutil.rmtree(folder), "no refiner at"),
        (
            lambda folder: (folder / "reprise.json").write_text('{"temperature": -1}'),
            "reprise.json: temperature",
        ),
    ],
)
def test_refiners_that_cannot_be_trained_leave_nothing_behind(change, message, log, refiner, tmp_path):
    bad = without(refiner, tmp_path / "bad", change)
    for stage in STAGES:
        with pytest.raises(CheckpointError, match=message):
            train(stage, settings(stage, log, bad), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_logs_that_cannot_be_trained_on_leave_nothing_behind(log, refiner, tmp_path):
    empty, unscored = tmp_path / "empty.jsonl", pictures.make(tmp_path / "u", scored=False)
    empty.touch()
    long = pictures.make(tmp_path / "long")
    long.write_text(long.read_text().replace('"prompt": "a red', '"prompt": "a' + " red" * 40))
    for stage, changes, message in (
        ("decoder", {"log": empty}, "holds no log lines"),
        ("encoder", {"log": tmp_path / "none.jsonl"}, "cannot read the log"),
        ("encoder", {"log": unscored}, "no scores of 'shapeworld', only of nothing"),
        ("decoder", {"log": log, "least": {"shapeworld": 2.0}}, "no picture has 2 of"),
        ("encoder", {"log": long}, "are longer than the encoder's window of 32 tokens"),
        ("decoder", {"log": log, "max_tokens": 4}, "longer than max_tokens=4; raise"),
        ("decoder", {"log": log, "max_tokens": 500}, "does not fit into the decoder"),
        ("encoder", {"log": log, "eval_share": 0.99}, "leaves none to train on"),
    ):
        config = settings(stage, changes.pop("log"), refiner, **changes)
        with pytest.raises(BadInput, match=message):
            train(stage, config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_few_bad_records_are_left_out_and_counted(refiner, tmp_path):
    log = pictures.make(tmp_path / "log")
    lines = log.read_text().splitlines()
    lines[0] = lines[0].replace("on white", "on" + " white" * 200)
    log.write_text("\n".join(lines) + "\n")
    damaged, gone = sorted((tmp_path / "log/pictures").glob("blue-ring-*.png"))[:2]
    damaged.write_bytes(b"half")
    gone.unlink()
    said = []
    train(
        "decoder",
        settings("decoder", log, refiner, max_steps=1, eval_share=0),
        tmp_path / "run",
        log=said.append,
    )
    text = " ".join(said)
    assert "left out 1 of 48 of the pictures" in text and "left out 1 of 47 of the prompts" in text
    assert (
        "left out 1 of 46 of the pictures: they cannot be read" in text and "45 pictures, 0 held out" in text
    )


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("decoder", {"least": 3}, "least"),
        ("decoder", {"model": None}, "give one of model"),
        ("decoder", {"preset": "paper"}, "give one of model"),
        ("decoder", {"preset": "papr", "model": None}, "'paper'"),
        ("decoder", {"train_image": True}, "train_image away"),
        ("decoder", {"train_image": True, "preset": "paper", "model": None}, "train_image away"),
        ("decoder", {"sources": {"decoder": "x"}}, "sources replace"),
        ("decoder", {"sources": {"tower": "x"}}, "unknown setting in test: sources: 'tower'"),
        ("decoder", {"dtype": "bfloat16", "device": "cpu"}, "set dtype=float32"),
        ("encoder", {"scheduler": "constant"}, "warmup_ratio=0"),
        ("encoder", {"rewards": {}}, "rewards"),
        ("encoder", {"rewards": {"x": 0}}, "rewards"),
        ("encoder", {"preferred": "worst"}, "preferred"),
        ("encoder", {"preferred": "random", "rewards": {"x": 1}}, "leave rewards out"),
        ("encoder", {"reward": "x"}, "did you mean 'rewards'"),
        ("decoder", {"max_step": 2}, "did you mean 'max_steps'"),
    ],
)
def test_impossible_settings(stage, changes, message):
    values = {"model": "m", "log": "l", **changes}
    with pytest.raises(BadInput, match=message):
        parse_config(STAGES[stage][1], {k: v for k, v in values.items() if v is not None}, "test")


def test_published_parts(log, tmp_path):
    """A T5, a language model and a BLIP-2 in their own layouts, by their folders."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

    tiny = save(tmp_path / "tiny")
    torch.manual_seed(0)
    Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 16,
                "initializer_range": 0.2,
            },
            qformer_config={
                "hidden_size": 768,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "encoder_hidden_size": 32,
                "vocab_size": 50,
            },
            text_config=OPTConfig(
                hidden_size=16,
                ffn_dim=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=20,
                max_position_embeddings=20,
                word_embed_proj_dim=16,
            ).to_dict(),
            num_query_tokens=32,
        )
    ).save_pretrained(tmp_path / "blip2")
    parts = {
        "encoder": str(tiny / "encoder"),
        "decoder": str(tiny / "decoder"),
        "image": str(tmp_path / "blip2"),
    }
    config = settings("decoder", log, preset="paper", sources=parts, max_steps=1, max_tokens=64, eval_share=0)
    final = train("decoder", config, tmp_path / "run")
    assert Prip.from_pretrained(final).pivot_mean.shape == (32, 768)
    kept, taken = (load_file(folder / "encoder/model.safetensors") for folder in (final, tiny))
    assert kept.keys() == taken.keys() and all(torch.equal(kept[name], taken[name]) for name in taken)
    config = settings("decoder", log, preset="paper", sources={**parts, "image": str(tmp_path)}, max_steps=1)
    with pytest.raises(CheckpointError, match="cannot take BLIP-2's vision part"):
        train("decoder", config, tmp_path / "other")
    assert not (tmp_path / "other").exists()
