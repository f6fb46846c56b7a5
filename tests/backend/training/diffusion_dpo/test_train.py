"""Diffusion-DPO on tiny random renderers of every family."""

import json
import math
import shutil
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.core.config import parse_config, save_config
from reprise.backend.core.errors import BadInput, TrainingFailed, Unsupported
from reprise.backend.preferences.store import Pair, PairPicture, Store
from reprise.backend.renderers.diffusers.lora import apply_lora
from reprise.backend.training.common.run_folder import claim_run_folder
from reprise.backend.training.diffusion_dpo.config import DiffusionDpoConfig
from reprise.backend.training.diffusion_dpo.loop import DiffusionDpoLoop
from reprise.backend.training.diffusion_dpo.train import train

from ...renderers.conftest import build
from ..conftest import half_write
from .conftest import answer, lora_of, quiet, rows, same, settings

FAMILIES = ["flux", "flux_true_cfg", "sd3", "sd1", "sd1_v", "sdxl", "sdxl_v", "pixart"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """family -> the folder of its tiny pipeline."""
    saved = {}

    def get(family):
        if family not in saved:
            pipe = build(family.removesuffix("_v"))
            if family.endswith("_v"):
                from diffusers import DDIMScheduler

                # As a word of its own: in the config it is marked as a default, and would be left as it was.
                pipe.scheduler = DDIMScheduler.from_config(
                    pipe.scheduler.config, prediction_type="v_prediction"
                )
            saved[family] = tmp_path_factory.mktemp(family) / "model"
            pipe.save_pretrained(saved[family])
        return saved[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, folders, store, tmp_path):
    """It starts at log 2, only the adapter learns, and the file makes the renderer that was trained."""
    config = settings(
        folders(family), store, learning_rate=2e-3, lora={"r": 2, "alpha": 4, "targets": "blocks"}
    )
    claim_run_folder(tmp_path, save_config(config), False)
    loop = DiffusionDpoLoop(config, tmp_path, False, quiet)
    assert loop.weights and all("lora_" in name for name in loop.weights)
    assert loop.beta == (100 if loop.noising.prediction == "flow" else 5000)
    assert (loop.noising.prediction == "v_prediction") is family.endswith("_v")
    frozen = {name: weight.clone() for name, weight in loop.model.state_dict().items() if "lora_" not in name}
    reference = answer(loop)
    final = loop.run()
    found = rows(tmp_path)
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-7) and found[0]["margin"] == 0.0
    assert [row["step"] for row in found] == [1, 2, 3, 4] and found[-1]["loss"] != found[0]["loss"]
    assert all(row["grad_norm"] > 0 for row in found)
    for name, weight in loop.model.state_dict().items():
        assert "lora_" in name or torch.equal(weight, frozen[name]), name
    torch.testing.assert_close(answer(loop, adapter=False), reference, rtol=0, atol=0)

    notes = json.loads((final / "reprise.json").read_text())
    assert notes["role"] == "lora" and notes["beta"] == loop.beta and notes["pairs"] == 6
    trained = answer(loop)
    assert (trained - reference).abs().max() > 1e-4
    plain = build(family.removesuffix("_v"))
    loop.denoiser.module = getattr(plain, loop.family.denoiser)
    apply_lora(lora_of(tmp_path), loop.denoiser.module)
    torch.testing.assert_close(answer(loop), trained, rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_one_of_the_paper(folders, store, tmp_path):
    """A step's loss against the equation, put together from the model's own answers."""
    loop = DiffusionDpoLoop(settings(folders("sd1"), store), tmp_path, False, quiet)
    for name, weight in loop.weights.items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    pairs = loop.pairs[:2]
    noise, u = loop._noise([0, 1])
    losses, figures = loop._losses(pairs, noise, u)
    t = (u * 1000).long()
    abar = 1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
    abar = abar.cumprod(0)[t].view(-1, 1, 1, 1)
    condition = torch.cat([loop.encoded.condition(pair.condition)["prompt_embeds"] for pair in pairs])
    error = {}
    for side in ("chosen", "rejected"):
        clean = torch.stack([loop.encoded.latent(getattr(pair, side).image) for pair in pairs])
        noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise  # one noise, one time for both
        for who in ("model", "reference"):
            with torch.no_grad(), nullcontext() if who == "model" else loop.model.disable_adapter():
                said = loop.model(noisy, t, encoder_hidden_states=condition, return_dict=False)[0]
            error[side, who] = (said - noise).square().mean((1, 2, 3))
    inside = error["chosen", "model"] - error["chosen", "reference"]
    inside = inside - (error["rejected", "model"] - error["rejected", "reference"])
    expected = -torch.log(torch.sigmoid(-2500 * inside))
    torch.testing.assert_close(losses.detach(), expected, rtol=2e-3, atol=1e-4)
    assert figures["accuracy"] == (inside < 0).float().mean().item()


def test_it_learns_to_prefer_the_better_pictures(folders, store, tmp_path):
    """On pairs that were held out, too; the errors of what was liked fall against those of what was not."""
    config = settings(
        folders("flux"),
        store,
        max_steps=30,
        batch_size=4,
        eval_share=0.3,
        eval_every=15,
        beta=200,
        learning_rate=5e-3,
        lora={"r": 4, "targets": "blocks"},
    )
    train(config, tmp_path / "run", log=quiet)
    looks = rows(tmp_path / "run", "evaluations.jsonl")
    assert [row["step"] for row in looks] == [0, 15, 30]
    assert looks[0]["held-out/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert looks[-1]["held-out/loss"] < 0.9 * math.log(2) and looks[-1]["held-out/accuracy"] > 0.7
    assert looks[-1]["held-out/chosen"] < looks[-1]["held-out/rejected"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "30 of 30" in page and "held-out" in page


@pytest.fixture(scope="module")
def whole(folders, store, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    config = settings(folders("flux"), store, max_steps=6, eval_share=0.2, eval_every=3)
    assert train(config, run, log=quiet) == run / "final"
    return run, config


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 3, 5])
def test_killed_and_resumed_equals_never_killed(at, whole, tmp_path):
    run, config = whole

    def log(line):
        if line.startswith(f"step {at}/"):
            raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path, log=log)
    assert not (tmp_path / "final").exists()
    half_write(tmp_path, "adapter.safetensors")
    said = []
    train(config, tmp_path, resume=True, log=said.append)
    assert ("from the start" if at < 3 else f"going on from checkpoint-{at // 2 * 2}") in " ".join(said)
    assert same(tmp_path, run)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        found, expected = ([{**row, "seconds": 0} for row in rows(at, name)] for at in (tmp_path, run))
        assert found == expected
    assert len(list((tmp_path / "checkpoints").glob("checkpoint-*"))) == 2


def test_a_stopped_run_goes_on_with_the_pairs_it_started_with(whole, store, tmp_path):
    """Whatever was mined and struck meanwhile; a pair that is no longer there stops it."""
    run, config = whole
    own = Store(shutil.copytree(store.folder, tmp_path / "store"))
    config = config.model_copy(update={"preferences": own.folder})

    def log(line):
        if line.startswith("step 3/"):
            raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path / "run", log=log)
    stopped = shutil.copytree(tmp_path / "run", tmp_path / "other")
    own.strike([own.pairs()[0].id])
    own.add([own.all_pairs()[1].model_copy(update={"condition": "a dog"})])
    train(config, tmp_path / "run", resume=True, log=quiet)
    assert same(tmp_path / "run", run)
    lines = (own.folder / "pairs.jsonl").read_text().splitlines()[1:]
    (own.folder / "pairs.jsonl").write_text("".join(line + "\n" for line in lines))
    with pytest.raises(BadInput, match="1 of the 6 pairs that .* started with are not in the store"):
        train(config, stopped, resume=True, log=quiet)


def test_a_finished_run_is_returned_and_runs_are_not_mixed_up(whole):
    run, config = whole
    before = lora_of(run).stat().st_mtime_ns
    assert train(config, run, resume=True, log=quiet) == run / "final"
    assert lora_of(run).stat().st_mtime_ns == before
    with pytest.raises(BadInput, match="--resume"):
        train(config, run, log=quiet)
    with pytest.raises(BadInput, match="other settings"):
        train(config.model_copy(update={"beta": 7.0}), run, resume=True, log=quiet)


def test_accumulating_is_the_same_step(folders, store, tmp_path):
    """4 pairs at once, and one after the other."""
    for name, each, passes in (("once", 4, 1), ("turns", 1, 4)):
        config = settings(folders("sd3"), store, batch_size=each, accumulation=passes, learning_rate=1e-3)
        train(config, tmp_path / name, log=quiet)
    once, turns = rows(tmp_path / "once"), rows(tmp_path / "turns")
    for key in ("loss", "chosen", "grad_norm"):
        assert [row[key] for row in once] == pytest.approx([row[key] for row in turns], rel=1e-3, abs=1e-6)
    a, b = (load_file(lora_of(tmp_path / name)) for name in ("once", "turns"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)


def test_bfloat16_and_checkpointing(folders, store, tmp_path):
    """As on a GPU: frozen weights in bfloat16, the adapter in float32."""
    config = settings(
        folders("sdxl"),
        store,
        dtype="bfloat16",
        gradient_checkpointing=True,
        max_steps=2,
        export_dtype="bfloat16",
    )
    loop = DiffusionDpoLoop(config, tmp_path / "run", False, quiet)
    assert {weight.dtype for weight in loop.weights.values()} == {torch.float32}
    assert loop.pipeline.unet.dtype == torch.bfloat16
    single = DiffusionDpoLoop(settings(folders("sdxl"), store), tmp_path / "single", False, quiet)
    latents = [made.encoded.latent(made.pairs[0].chosen.image) for made in (loop, single)]
    assert torch.equal(*latents), "the VAE was never in half precision"
    train(config, tmp_path / "other", log=quiet)
    assert rows(tmp_path / "other")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert load_file(lora_of(tmp_path / "other")).popitem()[1].dtype in (torch.bfloat16, torch.float32)


def test_accelerates_own_config_changes_nothing(whole, tmp_path, monkeypatch):
    run, config = whole
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(config, tmp_path / "run", log=quiet)
    assert same(tmp_path / "run", run)


def test_the_embedded_renderer(store, tmp_path):
    """Its pictures are larger; two steps on scenes of its world."""
    made = Store(tmp_path / "store", create=True)
    random = torch.Generator().manual_seed(0)
    images = [made.put_image(torch.rand(128, 128, 3, generator=random)) for _ in range(2)]
    sides = [PairPicture(image=image, drawn_as="x", score=1.0 - i) for i, image in enumerate(images)]
    made.add(
        [
            Pair(
                prompt="a red circle",
                condition="a red circle",
                chosen=sides[0],
                rejected=sides[1],
                reward="r",
                margin=1.0,
                source="render",
                run="a",
            )
        ]
    )
    config = settings("shapeworld", made, max_steps=2)
    final = train(config, tmp_path / "run", log=quiet)
    assert all(key.startswith("transformer.") for key in load_file(final / "lora.safetensors"))
    assert rows(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_refused_trainings_leave_nothing_behind(folders, store, tmp_path):
    empty = tmp_path / "empty"
    for changes, error, message in (
        ({"margin": 2.0}, BadInput, "are ties"),
        ({"reward": "x"}, BadInput, "only of redness"),
        ({"preferences": empty}, BadInput, "holds no preferences"),
        ({"eval_share": 0.99}, BadInput, "leaves none"),
        ({"shift": 2.0}, Unsupported, "shift is for flows"),
        ({"guidance": 2.0}, Unsupported, "no guidance"),
        ({"max_sequence_length": 9}, Unsupported, "fixed text length"),
        ({"size": 100}, BadInput, "no multiple"),
    ):
        config = settings(folders("sd1"), store, **changes)
        with pytest.raises(error, match=message):
            train(config, tmp_path / "run", log=quiet)
        assert not (tmp_path / "run").exists()


def test_pictures_of_several_sizes(folders, tmp_path):
    made = Store(tmp_path / "store", create=True)
    sides = [
        PairPicture(image=made.put_image(torch.rand(16, 16 + 8 * i, 3)), drawn_as="x", score=1.0 - i)
        for i in (0, 1)
    ]
    made.add(
        [
            Pair(
                prompt="x",
                condition="x",
                chosen=sides[0],
                rejected=sides[1],
                reward="r",
                margin=1.0,
                source="render",
                run="a",
            )
        ]
    )
    with pytest.raises(BadInput, match="several sizes .16 x 16, 24 x 16"):
        train(settings(folders("sd1"), made), tmp_path / "run", log=quiet)


def test_a_loss_of_nan_stops_the_run(folders, store, tmp_path):
    config = settings(folders("sd3"), store, learning_rate=1e30)
    with pytest.raises(TrainingFailed, match="is nan; lower learning_rate"):
        train(config, tmp_path / "run", log=quiet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "fake"}, "no weights that can be trained"),
        ({"beta": 0}, "beta"),
        ({"eval_share": 1.0}, "eval_share"),
        ({"scheduler": "constant"}, "warmup_ratio=0"),
        ({"lora": {"targets": "all-linear"}}, "targets"),
        ({"times": "late"}, "times"),
        ({"lora": None}, "lora"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(BadInput, match=message):
        parse_config(DiffusionDpoConfig, {"model": "shapeworld", "preferences": "p", **changes}, "test")


def test_a_single_file_is_trained_as_its_folder(folders, store, tmp_path):
    from safetensors.torch import save_file

    from ...renderers.diffusers import original_layouts as original

    folder, file = folders("flux"), tmp_path / "flux.safetensors"
    save_file(original.checkpoint(build("flux"), "flux"), file)
    made = {}
    for name, model in (("file", {"model": str(file), "base": str(folder)}), ("folder", {})):
        config = settings(folder, store, max_steps=2, learning_rate=2e-3, **model)
        claim_run_folder(tmp_path / name, save_config(config), False)
        loop = DiffusionDpoLoop(config, tmp_path / name, False, quiet)
        loop.run()
        made[name] = load_file(lora_of(tmp_path / name))
    assert made["file"].keys() == made["folder"].keys() and made["file"]
    assert all(torch.equal(value, made["folder"][key]) for key, value in made["file"].items())


def test_what_is_no_model_of_its_own_is_refused(folders, store, tmp_path):
    from reprise.backend.training.diffusion_dpo.start import trainable

    with pytest.raises(BadInput, match="--base completes a single file"):
        trainable(settings(folders("flux"), store, base=str(folders("flux"))))
    with pytest.raises(BadInput, match="there is no file"):
        trainable(settings(tmp_path / "none.safetensors", store))
