"""PRIP's supervised stages on a tiny refiner and a few pictures of ShapeWorld."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprise.backend.config import load_config, parse_config, save_config
from reprise.backend.errors import BadInput, CheckpointError, TrainingFailed
from reprise.backend.registry import TRAINERS, resolve
from reprise.backend.rewriters import prip_presets
from reprise.backend.rewriters.prip import PripRewriter
from reprise.backend.rewriters.prip_image import ImagePivot
from reprise.backend.rewriters.prip_model import Prip
from reprise.backend.trainers import prip_decoder, prip_encoder, prip_loop
from reprise.backend.trainers.folder import claim
from reprise.backend.trainers.prip_decoder import DecoderConfig, DecoderLoop
from reprise.backend.trainers.prip_encoder import EncoderConfig, EncoderLoop
from reprise.backend.trainers.prip_pivots import Pivots

from ..rewriters.tiny_prip import TINY, save
from . import pictures
from .conftest import half_write

STAGES = {
    "decoder": (prip_decoder, DecoderConfig, DecoderLoop),
    "encoder": (prip_encoder, EncoderConfig, EncoderLoop),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return pictures.make(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    """A refiner with random weights, that has statistics already."""
    return save(tmp_path_factory.mktemp("refiner") / "tiny")


@pytest.fixture
def tiny_preset(monkeypatch):
    """`preset: shapeworld` at a size for tests."""
    monkeypatch.setitem(prip_presets.PRESETS, "shapeworld", TINY)


def settings(stage, log, refiner=None, **changes):
    made = {"log": log, "max_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "warmup_ratio": 0.0,
            "scheduler": "constant", "eval_share": 0.2, "eval_every": 2, "save_every": 2, "device": "cpu",
            "gradient_checkpointing": False}  # fmt: skip
    if "preset" not in changes:
        made["model"] = str(refiner)
    if stage == "encoder" and changes.get("preferred") != "random":
        made["rewards"] = {"shapeworld": 1.0}
    return STAGES[stage][1](**{**made, **changes})


def train(stage, config, run, resume=False, log=lambda line: None):
    return STAGES[stage][0].train(config, run, resume=resume, log=log)


def rows(run, name="metrics.jsonl"):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def tensors(folder):
    return {path.relative_to(folder).as_posix(): load_file(path)
            for path in sorted(folder.rglob("*.safetensors"))}  # fmt: skip


def changed(one, other):
    """Files of two refiners' folders, and in model.safetensors the tensors, that differ."""
    found, (a, b) = set(), (tensors(one), tensors(other))
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        differ = {key for key in a[name] if not torch.equal(a[name][key], b[name][key])}
        found |= differ if name == "model.safetensors" else {name} if differ else set()
    return found


def test_the_second_stage(log, refiner, tmp_path):
    """The loss falls, given the pictures' own pivots more than given others'; only D and projector change."""
    config = settings("decoder", log, refiner, max_steps=100, batch_size=16, learning_rate=2e-2,
                      eval_every=50, scheduler="cosine", max_new_tokens=12)  # fmt: skip
    final = train("decoder", config, tmp_path)
    found, looks = rows(tmp_path), rows(tmp_path, "evaluations.jsonl")
    assert [row["step"] for row in found] == list(range(1, 101))
    assert found[-1]["loss"] < 0.1 * found[0]["loss"] and [row["step"] for row in looks] == [0, 50, 100]
    assert looks[-1]["held-out/loss"] < 0.5 * looks[0]["held-out/loss"]
    assert looks[-1]["held-out/loss"] < looks[-1]["swapped/loss"] - 0.3
    assert changed(final, refiner) == {"decoder/model.safetensors", "projector.weight", "projector.bias"}
    kept = json.loads((final / "reprise.json").read_text())
    assert kept["role"] == "refiner" and kept["trainer"] == "prip-decoder" and kept["max_new_tokens"] == 12

    rewriter = PripRewriter(final)
    (row,) = rewriter.rewrite(["a red circle"])
    assert row[0].prompt.startswith("a red circle") and len(rewriter.model.words)
    from reprise.backend.rewards.pictures import read_picture

    for ground in ("white", "pink"):
        picture = read_picture(log.parent / f"pictures/red-circle-{ground}.png")
        assert rewriter.describe(picture[None])[0][0].prompt.endswith(f"on {ground} background")
    page = (tmp_path / "report.html").read_text()
    assert "100 of 100" in page and "swapped" in page and "data:image" in page


def test_a_blind_decoder(log, refiner, tmp_path, tiny_preset):
    """The paper's ablation: prompts are learned, pictures are not shown."""
    made = {"preset": "shapeworld", "tower": refiner, "blind": True, "max_steps": 60, "batch_size": 16}
    config = settings("decoder", log, eval_every=30, **made)
    final = train("decoder", config, tmp_path)
    found, looks = rows(tmp_path), rows(tmp_path, "evaluations.jsonl")
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    assert looks[-1]["held-out/loss"] == pytest.approx(looks[-1]["swapped/loss"])
    own, other = tensors(final), tensors(refiner)
    assert all(torch.equal(own["image/model.safetensors"][key], one)
               for key, one in other["image/model.safetensors"].items())  # fmt: skip
    assert Prip.from_pretrained(final).pivot_std.gt(0).all()
    with pytest.raises(ValueError, match="take train_image away"):
        settings("decoder", log, **made, train_image=True)


def test_what_is_learned_is_what_inference_reads_and_writes(log, refiner, tmp_path):
    """Log-probabilities of tokens are those that `write` draws them with; a prompt is learned as one text."""
    config = settings("decoder", log, refiner, eval_share=0)
    loop = DecoderLoop(config, tmp_path, False, lambda line: None)
    loop._look()
    item = loop.items[0]
    assert item.ids == [*loop.model.write_ids(item.record.system), loop.model.writer.eos_token_id]
    rewriter = PripRewriter(loop.model, max_new_tokens=6)
    (seen,) = loop._seen([item])
    (one,) = rewriter.write([seen], [loop.model.write_ids("a red")], [7])
    with torch.no_grad():
        whole = loop.model.logits(seen[None], [loop.model.write_ids("a red")], [one.ids], guarded=True)
        logps = (whole[0] / rewriter.temperature).log_softmax(-1)
    torch.testing.assert_close(logps.gather(1, torch.tensor(one.ids)[:, None])[:, 0], torch.tensor(one.logps),
                               rtol=1e-3, atol=1e-3)  # fmt: skip
    # A prompt is learned as one text; its beginning is what a user's prompt is to inference.
    start, rest = item.ids[:3], item.ids[3:]
    with torch.no_grad():
        asked = loop.model.logits(seen[None], [start], [rest])[0].log_softmax(-1)
        learned = loop.model.logits(seen[None], [[]], [item.ids])[0].log_softmax(-1)
    torch.testing.assert_close(learned[3:], asked, rtol=1e-4, atol=1e-4)


def test_the_first_stage(log, refiner, tmp_path):
    """The error falls below the mean picture's; E alone changes, files of the others are what they were."""
    config = settings("encoder", log, refiner, max_steps=30, batch_size=8, eval_every=30, learning_rate=3e-3)
    final = train("encoder", config, tmp_path)
    found, looks = rows(tmp_path), rows(tmp_path, "evaluations.jsonl")
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    assert looks[-1]["held-out/error"] < min(1, looks[0]["held-out/error"])
    names = changed(final, refiner)
    assert {"encoder/model.safetensors", "encoder.head.weight", "encoder.queries.weight"} <= names
    assert all(name.startswith("encoder") for name in names)
    for path in [*(refiner / "decoder").iterdir(), *(refiner / "image").iterdir()]:
        assert (final / path.relative_to(refiner)).read_bytes() == path.read_bytes(), path
    assert json.loads((final / "reprise.json").read_text())["max_new_tokens"] == 8  # carried over
    assert PripRewriter(final).rewrite(["a red circle"])[0][0].prompt.startswith("a red circle")


def test_the_target_is_the_preferred_picture(log, refiner, tmp_path):
    for how, ground in (("best", {"beige"}), ("random", {"beige", "grey", "pink", "white"})):
        config = settings("encoder", log, refiner, preferred=how, eval_share=0)
        loop = EncoderLoop(config, tmp_path / how, False, lambda line: None)
        assert len(loop.items) == 12
        assert {item.record.picture.stem.split("-")[2] for item in loop.items} == ground
        loop._look()
        item = loop.items[0]
        with torch.no_grad():
            from reprise.backend.rewards.pictures import read_picture

            raw = loop.tower(read_picture(item.record.picture)[None])
            imagined = loop.model.encode([item.ids])
            expected = (imagined - (raw - loop.model.pivot_mean) / loop.model.pivot_std).square().mean()
            torch.testing.assert_close(loop._loss([item]), expected, rtol=1e-2, atol=1e-3)


def test_from_nothing_with_a_vision_tower_that_learns(tiny_preset, log, tmp_path):
    config = settings(
        "decoder", log, preset="shapeworld", train_image=True, max_steps=10, pivots=tmp_path / "p"
    )
    final = train("decoder", config, tmp_path / "run")
    model, tower = Prip.from_pretrained(final), ImagePivot.from_pretrained(final / "image")
    torch.manual_seed(config.seed)
    start = prip_loop.begin(config)[1]
    assert any(
        not torch.equal(a, b) for a, b in zip(tower.state_dict().values(), start.state_dict().values())
    )
    # Statistics are the trained tower's, of what was trained on, and of nothing else.
    loop = DecoderLoop(config, tmp_path / "other", False, lambda line: None)
    pivots = Pivots(tmp_path / "p", tower)
    mean, std = pivots.statistics([item.record.picture for item in loop.items])
    torch.testing.assert_close(model.pivot_mean, mean, rtol=0, atol=0)
    torch.testing.assert_close(model.pivot_std, std, rtol=0, atol=0)
    assert rows(tmp_path / "run")[-1]["loss"] < rows(tmp_path / "run")[0]["loss"]
    # And the first stage goes on from there.
    after = train("encoder", settings("encoder", log, final, max_steps=2), tmp_path / "encoder")
    assert all(name.startswith("encoder") for name in changed(after, final))


def test_statistics_of_a_preset_are_taken_once(tiny_preset, log, tmp_path):
    final = train("decoder", settings("decoder", log, preset="shapeworld", max_steps=1), tmp_path / "one")
    other = pictures.make(tmp_path / "white", grounds=("white",))
    after = train("decoder", settings("decoder", other, final, max_steps=1), tmp_path / "two")
    one, two = (load_file(folder / "model.safetensors") for folder in (final, after))
    assert torch.equal(one["pivot_mean"], two["pivot_mean"]) and one["pivot_mean"].isfinite().all()


def test_pivots_that_are_all_alike_are_warned_of(tiny_preset, log, tmp_path, monkeypatch):
    """An untrained tower of the usual small weights."""
    vision, qformer = (
        {**part, "initializer_range": 0.03} for part in (TINY.image.vision, TINY.image.qformer)
    )
    flat = TINY.image.model_copy(update={"vision": vision, "qformer": qformer})
    preset = prip_presets.Preset(TINY.config, TINY.encoder, TINY.decoder, flat)
    for made, warned in ((TINY, False), (preset, True)):
        monkeypatch.setitem(prip_presets.PRESETS, "shapeworld", made)
        said = []
        config = settings("decoder", log, preset="shapeworld", max_steps=1, eval_share=0)
        train("decoder", config, tmp_path / str(warned), log=said.append)
        assert any("that was never trained" in line for line in said) == warned


def test_an_adapter(log, refiner, tmp_path):
    """Only adapter and projector learn; what comes out is the merged decoder, which says what was trained."""
    config = settings("decoder", log, refiner, lora={"r": 2, "alpha": 4}, max_steps=4)
    claim(tmp_path, save_config(config), False)
    loop = DecoderLoop(config, tmp_path, False, lambda line: None)
    assert all("lora_" in name or name.startswith("projector") for name in loop.weights)
    assert {one.dtype for one in loop.weights.values()} == {torch.float32}
    final = loop.run()
    assert changed(final, refiner) == {"decoder/model.safetensors", "projector.weight", "projector.bias"}
    assert load_file(final / "decoder/model.safetensors").keys() == load_file(
        refiner / "decoder/model.safetensors").keys()  # fmt: skip
    loaded, item = Prip.from_pretrained(final), loop.items[0]
    loop.model = loaded
    with torch.no_grad():
        expected = rows(tmp_path, "evaluations.jsonl")[-1]["held-out/loss"]
        assert loop._figures()["held-out/loss"] == pytest.approx(expected, rel=1e-4)
    assert item.ids


def test_half_precision_and_checkpointing(log, refiner, tmp_path):
    config = settings("decoder", log, refiner, dtype="bfloat16", lora={"r": 2, "alpha": 4}, max_steps=1,
                      export_dtype="float16", gradient_checkpointing=True)  # fmt: skip
    final = train("decoder", config, tmp_path / "d") if torch.cuda.is_available() else None
    final = final or train("decoder", config.model_copy(update={"dtype": "float32"}), tmp_path / "e")
    kept = tensors(final)
    bridge = {t.dtype for name, t in kept["model.safetensors"].items() if not name.startswith("pivot")}
    assert bridge == {torch.float16}
    assert kept["model.safetensors"]["pivot_std"].dtype == torch.float32
    assert {t.dtype for t in kept["decoder/model.safetensors"].values()} == {torch.float16}
    assert PripRewriter(final).rewrite(["a red circle"])


@pytest.mark.parametrize("stage", STAGES)
def test_accumulating_is_the_same_step(stage, log, refiner, tmp_path):
    """4 records at once, and one after the other, of whatever length."""
    for name, each, passes in (("once", 4, 1), ("turns", 1, 4)):
        config = settings(
            stage, log, refiner, batch_size=each, accumulation=passes, learning_rate=1e-4, eval_share=0
        )
        train(stage, config, tmp_path / name)
    once, turns = rows(tmp_path / "once"), rows(tmp_path / "turns")
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in once] == pytest.approx([row[key] for row in turns], rel=1e-3)
    a, b = (tensors(tmp_path / name / "final") for name in ("once", "turns"))
    for name in a:
        for key in a[name]:
            torch.testing.assert_close(a[name][key], b[name][key], rtol=1e-3, atol=2e-4)


# Stopping and going on


RUNS = {
    "decoder": {}, "encoder": {"gradient_checkpointing": True},
    "tower": {"preset": "shapeworld", "train_image": True, "max_steps": 6},
    "adapter": {"lora": {"r": 2, "alpha": 4, "dropout": 0.2}},
}  # fmt: skip


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", RUNS)
def test_killed_and_resumed_is_never_killed(kind, tiny_preset, log, refiner, tmp_path, monkeypatch):
    monkeypatch.setattr(prip_decoder, "SETTLED", 0.5)  # killed before, at, and after
    stage = "encoder" if kind == "encoder" else "decoder"
    config = settings(stage, log, refiner, **{"max_steps": 5, **RUNS[kind]})
    whole = train(stage, config, tmp_path / "whole")
    for at in (1, 3, config.max_steps):

        def stop(line, at=at):
            if line.startswith(f"step {at}/"):
                raise Killed

        run = tmp_path / str(at)
        with pytest.raises(Killed):
            train(stage, config, run, log=stop)
        assert not (run / "final").exists()
        half_write(run, "weights.safetensors")
        said = []
        final = train(stage, config, run, resume=True, log=said.append)
        newest = (at - 1) // 2 * 2  # said before the step is saved
        assert ("from the start" if not newest else f"going on from checkpoint-{newest}") in " ".join(said)
        assert not changed(final, whole)
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            found, expected = ([{**row, "seconds": 0} for row in rows(one, name)]
                               for one in (run, tmp_path / "whole"))  # fmt: skip
            assert found == expected
        assert len(list((run / "checkpoints").glob("checkpoint-*"))) == 2


PROGRAM = """
import json, os, signal, sys, torch
from pathlib import Path
from reprise.backend.trainers.prip_encoder import EncoderConfig, train
torch.set_num_threads(1)
import safetensors.torch
save, calls = safetensors.torch.save_file, []
def dying(tensors, path, *rest, **options):
    if Path(path).name == "optimizer.safetensors":
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    return save(tensors, path, *rest, **options)
safetensors.torch.save_file = dying
train(EncoderConfig(**json.loads(sys.stdin.read())), Path(sys.argv[1]), log=lambda line: None)
"""


def test_sigkill_while_a_checkpoint_is_written(log, refiner, tmp_path):
    config = settings("encoder", log, refiner)
    whole = train("encoder", config, tmp_path / "whole")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")], input=config.model_dump_json(), text=True,
        capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-500:]
    said = []
    final = train("encoder", config, tmp_path / "run", resume=True, log=said.append)
    assert "going on from checkpoint-2" in " ".join(said) and not changed(final, whole)


def test_a_finished_run_is_returned_and_runs_are_not_mixed_up(log, refiner, tmp_path):
    config = settings("encoder", log, refiner, max_steps=1)
    final = train("encoder", config, tmp_path)
    before = (final / "model.safetensors").stat().st_mtime_ns
    assert train("encoder", config, tmp_path, resume=True) == final
    assert (final / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(BadInput, match="--resume"):
        train("encoder", config, tmp_path)
    with pytest.raises(BadInput, match="other settings"):
        train("encoder", config.model_copy(update={"seed": 7}), tmp_path, resume=True)


def test_a_log_that_changed_stops_a_resumed_run(refiner, tmp_path):
    log = pictures.make(tmp_path / "log")
    config = settings("decoder", log, refiner)

    def stop(line):
        if line.startswith("step 3/"):
            raise Killed

    with pytest.raises(Killed):
        train("decoder", config, tmp_path / "run", log=stop)
    log.write_text(log.read_text().replace(" white background", " pale background"))
    with pytest.raises(BadInput, match="or its pictures changed since .* began"):
        train("decoder", config, tmp_path / "run", resume=True)


# Bad input


def test_a_loss_that_is_no_number_stops_the_run(log, refiner, tmp_path, monkeypatch):
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
    with pytest.raises(TrainingFailed, match="checkpoint-2 cannot be written: .*No space left.*make room"):
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
    ).save_pretrained(folder / "decoder")  # fmt: skip


def other_tower(folder):
    config = TINY.image.model_copy(update={"queries": 3})
    ImagePivot(config).save_pretrained(folder / "image")


@pytest.mark.parametrize(("change", "message"), [
    (drop_statistics, "has no pivot statistics"),
    (other_decoder, "is 16 wide, this refiner's projector writes 32"),
    (other_tower, "pivots of 3 x 24, this refiner reads 5 x 24"),
    (lambda folder: shutil.rmtree(folder / "image"), "no vision tower at"),
    (lambda folder: shutil.rmtree(folder), "no refiner at"),
    (lambda folder: (folder / "reprise.json").write_text('{"temperature": -1}'), "reprise.json: temperature"),
])  # fmt: skip
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
        ("decoder", {"log": empty}, "is empty"),
        ("encoder", {"log": tmp_path / "none.jsonl"}, "cannot read the log"),
        ("encoder", {"log": unscored}, "no scores of 'shapeworld', only of nothing"),
        ("decoder", {"log": log, "least": {"shapeworld": 2.0}}, "no picture has 2 of"),
        ("encoder", {"log": long}, "are longer than the encoder's window of 32 tokens"),
        ("decoder", {"log": log, "max_tokens": 4}, "longer than max_tokens=4; raise"),
        ("decoder", {"log": log, "max_tokens": 500}, "does not fit into the decoder"),
        ("encoder", {"log": log, "eval_share": 0.99}, "leaves none to train on"),
    ):  # fmt: skip
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


@pytest.mark.parametrize(("stage", "changes", "message"), [
    ("decoder", {"least": 3}, "least"), ("decoder", {"model": None}, "give one of model"),
    ("decoder", {"preset": "paper"}, "give one of model"),
    ("decoder", {"preset": "papr", "model": None}, "'paper'"),
    ("decoder", {"train_image": True}, "train_image away"),
    ("decoder", {"train_image": True, "preset": "paper", "model": None}, "train_image away"),
    ("decoder", {"sources": {"decoder": "x"}}, "sources replace"),
    ("decoder", {"sources": {"tower": "x"}}, "unknown setting in test: sources: 'tower'"),
    ("decoder", {"dtype": "bfloat16", "device": "cpu"}, "set dtype=float32"),
    ("encoder", {"scheduler": "constant"}, "warmup_ratio=0"), ("encoder", {"rewards": {}}, "rewards"),
    ("encoder", {"rewards": {"x": 0}}, "rewards"), ("encoder", {"preferred": "worst"}, "preferred"),
    ("encoder", {"preferred": "random", "rewards": {"x": 1}}, "leave rewards out"),
    ("encoder", {"reward": "x"}, "did you mean 'rewards'"),
    ("decoder", {"max_step": 2}, "did you mean 'max_steps'"),
])  # fmt: skip
def test_impossible_settings(stage, changes, message):
    values = {"model": "m", "log": "l", **changes}
    with pytest.raises(BadInput, match=message):
        parse_config(STAGES[stage][1], {k: v for k, v in values.items() if v is not None}, "test")


def test_every_setting_has_a_sentence():
    for model in (DecoderConfig, EncoderConfig, prip_loop.StageConfig, prip_loop.Sources):
        source = inspect.getsource(model)
        for name in model.__annotations__:
            after = source.split(f"    {name}:", 1)[1].split("\n", 2)[1]
            assert after.strip().startswith('"""'), name


@pytest.mark.parametrize("stage", STAGES)
def test_the_examples_of_settings_are_valid(stage):
    module, config, _ = STAGES[stage]
    folder = Path(module.__file__).parent / "configs"
    found = {
        path.stem.split("_", 1)[1]: load_config(config, path) for path in folder.glob(f"prip-{stage}_*.yaml")
    }
    assert found.keys() == {"shapeworld", "tinyllama", "paper"}
    assert resolve("trainer", TRAINERS, f"prip-{stage}") is module.train


def test_published_parts(log, tmp_path):
    """A T5, a language model and a BLIP-2 in their own layouts, by their folders."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

    tiny = save(tmp_path / "tiny")
    torch.manual_seed(0)
    Blip2ForConditionalGeneration(Blip2Config(
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                       "num_attention_heads": 4, "image_size": 32, "patch_size": 16,
                       "initializer_range": 0.2},
        qformer_config={"hidden_size": 768, "intermediate_size": 48, "num_hidden_layers": 1,
                        "num_attention_heads": 4, "encoder_hidden_size": 32, "vocab_size": 50},
        text_config=OPTConfig(hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
                              vocab_size=20, max_position_embeddings=20, word_embed_proj_dim=16).to_dict(),
        num_query_tokens=32,
    )).save_pretrained(tmp_path / "blip2")  # fmt: skip
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
