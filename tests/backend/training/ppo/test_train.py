"""PPO on a refiner that adds a colour, against a judge that likes red."""

import errno
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.core.errors import BadInput, CheckpointError, DiskFull, RewardFailed, TrainingFailed
from reprise.backend.preferences.mining import read_runs
from reprise.backend.rewriters.prip.rewriter import PripRewriter
from reprise.backend.storage.files import read_lines
from reprise.backend.training.ppo import policy
from reprise.backend.training.ppo import train as ppo
from reprise.backend.training.ppo.config import PpoConfig
from reprise.backend.training.ppo.loop import PpoLoop
from reprise.backend.training.ppo.train import train

from ..grpo.test_train import quiet, rows, same

ROOT = Path(ppo.__file__).parents[3]


def weights(folder):
    """All of a refiner's, by part."""
    found = {}
    for part in (".", "encoder", "decoder"):
        found |= {f"{part}/{key}": one for key, one in load_file(folder / part / "model.safetensors").items()}
    return found


def test_the_run_folder(finished):
    found = rows(finished)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert {
        "gain",
        "reward",
        "reward/redness",
        "reward/blueness",
        "original/redness",
        "kl",
        "ratio",
        "ratio_off",
        "sampler_off",
        "policy_loss",
        "value_loss",
        "entropy",
        "tokens",
        "words",
        "drift",
        "explained",
        "grad_norm",
        "critic_grad_norm",
        "kl_weight",
    } <= found[0].keys()
    looks = rows(finished, "evaluations.jsonl")
    assert [row["step"] for row in looks] == [0, 2, 4]
    assert {"unchanged/redness", "held-out/redness", "held-out/blueness"} <= looks[0].keys()
    lines = read_lines(finished / "rollouts" / "rollouts.jsonl")
    assert {line["step"] for line in lines} == {1, 2, 3, 4} and len(lines) == 4 * (4 + 8)
    pictures = {path.stem for path in finished.glob("rollouts/pictures/*/*.png")}
    assert pictures >= {key for line in lines for key in line["pictures"]}
    page = (finished / "report.html").read_text()
    for title in (
        "Gain over the prompt as typed",
        "Ratio, mean",
        "Value loss",
        "Entropy",
        "Distance from the initial pivots",
        "KL from the initial",
        "Words of a rewrite",
    ):
        assert title in page, title
    assert 'http-equiv="refresh"' not in page and "data:image/png" in page
    assert list((finished / "tensorboard").iterdir())
    kept = {path.stem for path in (finished / "checkpoints" / "checkpoint-4").iterdir()}
    assert kept == {"checksums", "critic", "encoder", "optimizer", "trainer_state"}


def test_preferences_are_mined_from_a_run(finished):
    """What `reprise preferences mine` finds: the pictures of each prompt, and which refinement drew them."""
    lines = read_lines(finished / "rollouts" / "rollouts.jsonl")
    groups = list(read_runs(finished, "redness", print))
    assert sum(len(group.pictures) for group in groups) == sum(len(line["pictures"]) for line in lines)
    assert {group.source for group in groups} == {"training"} and len(groups) == 4 * 4
    for group in groups:
        plain = [one for one in group.pictures if one.reason is None]
        assert {one.drawn_as for one in plain} == {group.user_prompt} and len(plain) < len(group.pictures)
        assert all(one.load() is not None for one in group.pictures)


def test_only_the_encoder_changes(finished, refiner):
    before, after = weights(refiner), weights(finished / "final")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith(("encoder/", "./encoder.")) for key in changed)
    assert "./encoder.queries.weight" in changed and "./encoder.head.weight" in changed
    for part in ("decoder", "image"):
        names = [path.name for path in (refiner / part).iterdir()]
        assert all(
            (refiner / part / n).read_bytes() == (finished / "final" / part / n).read_bytes() for n in names
        )


def test_the_node_loads_the_trained_refiner(finished):
    """With the start's own settings: the temperature of training is for exploring."""
    made = PripRewriter(finished / "final", device="cpu")
    assert (made.max_new_tokens, made.temperature) == (4, 0.7)
    [[one]] = made.rewrite(["a star"])
    assert one.prompt.startswith("a star, ")
    made.describe(torch.rand(1, 32, 32, 3))
    assert PripRewriter(finished / "best", device="cpu").temperature == 0.7
    assert not list((finished / "final").rglob("critic*"))


def test_it_learns(values, tmp_path):
    """Red is what the judge likes: from the least of what is drawn to most, also on prompts held out."""
    settings = {
        **values,
        "max_steps": 20,
        "rewrites": 8,
        "batch_size": 32,
        "minibatches": 1,
        "kl": 0.0,
        "scheduler": "constant",
        "save_every": 50,
        "eval_every": 20,
    }
    train(PpoConfig(**settings), tmp_path / "run", log=quiet)
    red = [row["reward/redness"] for row in rows(tmp_path / "run")]
    assert red[0] < 0.5 and sum(red[-3:]) / 3 > 0.75
    before, after = (rows(tmp_path / "run", "evaluations.jsonl")[i]["held-out/redness"] for i in (0, -1))
    assert before < 0.4 and after > 0.6


# Invariants


def test_the_ratio_is_1_at_the_first_inner_step_and_the_policy_is_its_reference(finished):
    for row in rows(finished):
        assert row["ratio_off"] < 1e-4 and row["sampler_off"] < 1e-3
    first, second = rows(finished)[:2]
    assert first["kl"] < 1e-9 < second["kl"] and 0 < first["ratio"] != 1  # later inner steps have moved


def test_the_users_own_pictures_are_drawn_once(finished):
    """Four prompts a step, the same each time: their own pictures come from the cache after the first."""
    first, *later = read_lines(finished / "metrics.jsonl")
    assert first["pictures"] >= 4 and all(row["pictures_reused"] >= 4 for row in later)
    lines = read_lines(finished / "rollouts" / "rollouts.jsonl")
    own = {(line["prompt"], *line["pictures"]) for line in lines if line["variant"] == "original"}
    assert len(own) == 4


# Killed and resumed


def compare(run, finished):
    assert same(weights(run / "final"), weights(finished / "final"))
    for name in ("metrics.jsonl", "evaluations.jsonl", "rollouts/rollouts.jsonl"):
        assert rows(run, name) == rows(finished, name)
    assert same(weights(run / "best"), weights(finished / "best"))
    for name in ("critic", "optimizer"):
        path = Path("checkpoints") / "checkpoint-4" / f"{name}.safetensors"
        assert same(load_file(run / path), load_file(finished / path))


@pytest.mark.parametrize(("where", "step"), [("rollout", 1), ("rollout", 3), ("update", 3), ("save", 3)])
def test_killed_and_resumed_equals_never_killed(where, step, values, finished, tmp_path):
    """SIGKILL while it rolls out, updates or saves; bit for bit."""
    run = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-m", "tests.backend.training.refined", str(run), where, str(step)],
        cwd=ROOT,
        input=json.dumps(values),
        text=True,
        capture_output=True,
    )
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert not (run / "final").exists()
    assert (run / "checkpoints" / "checkpoint-3").exists() == (where == "save")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')
    said = []
    train(PpoConfig(**values), run, resume=True, log=said.append)
    begun = f"going on from checkpoint-{step - 1}" if step > 1 else "from the start"
    assert any(begun in line for line in said)
    compare(run, finished)


def test_stopped_by_hand_in_a_step_and_resumed(values, finished, tmp_path, monkeypatch):
    """Ctrl-C between two minibatches."""
    update, done = torch.optim.AdamW.step, []

    def stopped(self, *arguments, **options):
        done.append(1)
        if len(done) == 7:
            raise KeyboardInterrupt
        return update(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(PpoConfig(**values), tmp_path / "run", log=quiet)
    train(PpoConfig(**values), tmp_path / "run", resume=True, log=quiet)
    compare(tmp_path / "run", finished)


def test_changed_prompts_stop_a_resumed_run(values, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "final")
    prompts = Path(values["prompts"])
    before = prompts.read_text()
    prompts.write_text(before + "one more\n")
    try:
        with pytest.raises(BadInput, match="or what it names, changed since .* began; bring it back"):
            train(PpoConfig(**values), run, resume=True, log=quiet)
    finally:
        prompts.write_text(before)
    assert train(PpoConfig(**values), run, resume=True, log=quiet).is_dir()


def test_a_damaged_checkpoint_is_refused_and_the_one_before_works(values, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "final")
    newest = run / "checkpoints" / "checkpoint-4"
    whole = (newest / "critic.safetensors").read_bytes()
    (newest / "critic.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"critic.safetensors is damaged .*delete the folder .*point-4"):
        train(PpoConfig(**values), run, resume=True, log=quiet)
    shutil.rmtree(newest)
    train(PpoConfig(**values), run, resume=True, log=quiet)
    compare(run, finished)


def test_damaged_first_pivots_are_made_again(values, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    (warm,) = (run / "warm").iterdir()
    whole = warm.read_bytes()
    warm.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="damaged .*delete it, and --resume makes it again"):
        train(PpoConfig(**values), run, resume=True, log=quiet)
    warm.unlink()
    train(PpoConfig(**values), run, resume=True, log=quiet)
    assert warm.read_bytes() == whole
    compare(run, finished)


def test_runs_are_not_mixed_up(finished, values, tmp_path):
    assert train(PpoConfig(**values), finished, resume=True, log=quiet) == finished / "final"
    with pytest.raises(BadInput, match="--resume"):
        train(PpoConfig(**values), finished)
    with pytest.raises(BadInput, match="other settings"):
        train(PpoConfig(**{**values, "kl": 0.1}), finished, resume=True)
    with pytest.raises(BadInput, match="no run to go on with"):
        train(PpoConfig(**values), tmp_path / "none", resume=True)


# What stops it


def test_a_judge_that_is_down_stops_the_run_with_its_name(values, tmp_path):
    settings = {**values, "rewards": {"fails-always": 1.0}, "eval_prompts": None}
    with pytest.raises(RewardFailed, match="'fails-always'.*8 of 8 samples .*the judge is down"):
        train(PpoConfig(**settings), tmp_path / "run", log=quiet)


def test_a_picture_that_cannot_be_scored_drops_its_sample(values, tmp_path):
    settings = {
        **values,
        "rewards": {"fails-on-green": 1.0},
        "eval_prompts": None,
        "max_dropped": 0.9,
        "rewrites": 4,
        "max_steps": 1,
    }
    train(PpoConfig(**settings), tmp_path / "run", log=quiet)
    [row] = rows(tmp_path / "run")
    lines = [line for line in read_lines(tmp_path / "run" / "rollouts" / "rollouts.jsonl")]
    dropped = [line for line in lines if "dropped" in line]
    assert 0 < row["dropped"] == len(dropped) and all("green" in line["rewrite"] for line in dropped)
    assert all("'fails-on-green'" in line["dropped"] and "advantage" not in line for line in dropped)
    assert all("advantage" in line for line in lines if "gain" in line)


def test_a_loss_of_nan_stops_the_run(values, tmp_path, monkeypatch):
    loss, steps = PpoLoop._loss, []

    def broken(self, *arguments):
        steps.append(1)
        if len(steps) == 5:  # the second step's first minibatch
            with torch.no_grad():
                self.model.encoder.head.bias.fill_(math.nan)
        return loss(self, *arguments)

    monkeypatch.setattr(PpoLoop, "_loss", broken)
    with pytest.raises(TrainingFailed, match=r"loss of step 2 is nan; lower learning_rate, and begin"):
        train(PpoConfig(**{**values, "eval_prompts": None}), tmp_path / "run", log=quiet)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1]


@pytest.mark.parametrize("full", ["rollouts", "checkpoint", "warm"])
def test_a_full_disk_stops_the_run(full, values, finished, tmp_path, monkeypatch):
    import safetensors.torch

    run, disk = tmp_path / "run", OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        if full == "rollouts":
            opened = Path.open

            def refuse(self, mode="r", *rest, **options):
                later = (run / "checkpoints" / "checkpoint-2").exists()
                if self.name == "rollouts.jsonl" and mode == "a" and later:
                    raise disk
                return opened(self, mode, *rest, **options)

            patch.setattr(Path, "open", refuse)
        elif full == "warm":

            def no_room(path, tensors):
                raise DiskFull(f"the disk is full: {path}")

            patch.setattr(policy, "save_tensors", no_room)
        else:
            save = safetensors.torch.save_file

            def fail(tensors, path, *rest, **options):
                if Path(path).name == "optimizer.safetensors" and Path(path).parent.name == "checkpoint-3":
                    raise disk
                return save(tensors, path, *rest, **options)

            patch.setattr(safetensors.torch, "save_file", fail)
        then = "begin again" if full == "warm" else "--resume .* from step 2"
        with pytest.raises(TrainingFailed, match=f"no space left to write .*; make room, and {then}"):
            train(PpoConfig(**values), run, log=quiet)
    if full == "warm":
        return  # it had not begun
    train(PpoConfig(**values), run, resume=True, log=quiet)
    compare(run, finished)


def test_it_stops_on_hacking_and_stays_stopped(values, tmp_path, monkeypatch):
    """Gains rise by the step while the held-out reward falls."""
    from reprise.backend.training.ppo.rollouts import PpoRollouts
    from reprise.backend.training.rollouts import evaluation

    evaluate, fall = evaluation.evaluate, iter((0.9, 0.8, 0.7, 0.6, 0.5))

    def falling(*arguments, **options):
        figures, samples = evaluate(*arguments, **options)
        return {**figures, "held-out/blueness": next(fall)}, samples

    made, rise = PpoRollouts.collect, iter(range(9))

    def rising(self):
        batch = made(self)
        batch.figures["gain"] = 0.1 * next(rise)
        return batch

    monkeypatch.setattr(evaluation, "evaluate", falling)
    monkeypatch.setattr(PpoRollouts, "collect", rising)
    settings = PpoConfig(**{**values, "patience": 2, "eval_every": 1, "save_every": 9})
    said = []
    train(settings, tmp_path / "run", log=said.append)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2]
    assert any("looks like reward hacking" in line for line in said)
    shutil.rmtree(tmp_path / "run" / "final")  # killed before it was written
    train(settings, tmp_path / "run", resume=True, log=quiet)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2]
