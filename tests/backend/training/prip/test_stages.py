"""What the two stages of PRIP train, and what inference reads of it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.core.config import save_config
from reprise.backend.rewriters.prip import presets as prip_presets
from reprise.backend.rewriters.prip.model import Prip
from reprise.backend.rewriters.prip.rewriter import PripRewriter
from reprise.backend.rewriters.prip.vision import ImagePivot
from reprise.backend.training.common.run_folder import claim_run_folder
from reprise.backend.training.prip import loop as prip_loop
from reprise.backend.training.prip.decoder import DecoderLoop
from reprise.backend.training.prip.encoder import EncoderLoop
from reprise.backend.training.prip.pivots import Pivots

from ...rewriters.prip.tiny_prip import TINY
from .. import pictures
from .stages import STAGES, changed, rows, settings, tensors, train


def test_the_second_stage(log, refiner, tmp_path):
    """The loss falls, given the pictures' own pivots more than given others'; only D and projector change."""
    config = settings(
        "decoder",
        log,
        refiner,
        max_steps=100,
        batch_size=16,
        learning_rate=2e-2,
        eval_every=50,
        scheduler="cosine",
        max_new_tokens=12,
    )
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
    assert row[0].prompt.startswith("a red circle") and len(rewriter.model.word_tokens)
    from reprise.backend.storage.images import read_picture

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
    assert all(
        torch.equal(own["image/model.safetensors"][key], one)
        for key, one in other["image/model.safetensors"].items()
    )
    assert Prip.from_pretrained(final).pivot_std.gt(0).all()
    with pytest.raises(ValueError, match="take train_image away"):
        settings("decoder", log, **made, train_image=True)


def test_training_and_inference_read_and_write_the_same_tokens(log, refiner, tmp_path):
    """Log-probabilities of tokens are those that `write` draws them with; a prompt is learned as one text."""
    config = settings("decoder", log, refiner, eval_share=0)
    loop = DecoderLoop(config, tmp_path, False, lambda line: None)
    loop.take_pivots()
    item = loop.items[0]
    assert item.ids == [
        *loop.model.decoder_ids(item.record.system),
        loop.model.decoder_tokenizer.eos_token_id,
    ]
    rewriter = PripRewriter(loop.model, max_new_tokens=6)
    (seen,) = loop.pivots_of([item])
    (one,) = rewriter.generate([seen], [loop.model.decoder_ids("a red")], [7])
    with torch.no_grad():
        whole = loop.model.logits(seen[None], [loop.model.decoder_ids("a red")], [one.ids], continuation=True)
        logps = (whole[0] / rewriter.temperature).log_softmax(-1)
    torch.testing.assert_close(
        logps.gather(1, torch.tensor(one.ids)[:, None])[:, 0], torch.tensor(one.logps), rtol=1e-3, atol=1e-3
    )
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
        loop.take_pivots()
        item = loop.items[0]
        with torch.no_grad():
            from reprise.backend.storage.images import read_picture

            raw = loop.tower(read_picture(item.record.picture)[None])
            imagined = loop.model.encode([item.ids])
            expected = (imagined - (raw - loop.model.pivot_mean) / loop.model.pivot_std).square().mean()
            torch.testing.assert_close(loop.loss([item]), expected, rtol=1e-2, atol=1e-3)


def test_from_nothing_with_a_vision_tower_that_learns(tiny_preset, log, tmp_path):
    config = settings(
        "decoder", log, preset="shapeworld", train_image=True, max_steps=10, pivots=tmp_path / "p"
    )
    final = train("decoder", config, tmp_path / "run")
    model, tower = Prip.from_pretrained(final), ImagePivot.from_pretrained(final / "image")
    torch.manual_seed(config.seed)
    start = prip_loop.load_start(config)[1]
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


def test_similar_pivots_are_warned_of(tiny_preset, log, tmp_path, monkeypatch):
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
    claim_run_folder(tmp_path, save_config(config), False)
    loop = DecoderLoop(config, tmp_path, False, lambda line: None)
    assert all("lora_" in name or name.startswith("projector") for name in loop.weights)
    assert {one.dtype for one in loop.weights.values()} == {torch.float32}
    final = loop.run()
    assert changed(final, refiner) == {"decoder/model.safetensors", "projector.weight", "projector.bias"}
    assert (
        load_file(final / "decoder/model.safetensors").keys()
        == load_file(refiner / "decoder/model.safetensors").keys()
    )
    loaded, item = Prip.from_pretrained(final), loop.items[0]
    loop.model = loaded
    with torch.no_grad():
        expected = rows(tmp_path, "evaluations.jsonl")[-1]["held-out/loss"]
        assert loop.figures()["held-out/loss"] == pytest.approx(expected, rel=1e-4)
    assert item.ids


def test_half_precision_and_checkpointing(log, refiner, tmp_path):
    config = settings(
        "decoder",
        log,
        refiner,
        dtype="bfloat16",
        lora={"r": 2, "alpha": 4},
        max_steps=1,
        export_dtype="float16",
        gradient_checkpointing=True,
    )
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
