import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reprise.backend.core.config import parse_config
from reprise.backend.core.errors import BadInput, CheckpointError, RewardFailed, TrainingFailed, UnknownName
from reprise.backend.rewriters.reprompt import RePromptRewriter
from reprise.backend.storage.files import read_lines
from reprise.backend.training.grpo import train as grpo
from reprise.backend.training.grpo.config import GrpoConfig
from reprise.backend.training.grpo.train import train
from reprise.backend.training.rollouts.evaluation import looks_like_reward_hacking

ROOT = Path(grpo.__file__).parents[3]
TIMES = ("seconds", "pictures")  # what a resumed run may differ in: how long it took, what the cache had


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    path = tmp_path_factory.mktemp("held-out") / "held-out.txt"
    path.write_text("a square\na circle\na triangle\n")
    return path


@pytest.fixture(scope="module")
def values(taught, prompts, held_out):
    return {
        "model": str(taught),
        "prompts": str(prompts),
        "eval_prompts": str(held_out),
        "renderer": {"name": "words"},
        "rewards": {"redness": 1.0, "structure": 0.5},
        "held_out": ["blueness"],
        "patience": 0,
        "prompts_per_step": 2,
        "rewrites": 4,
        "batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.0,
        "scheduler": "linear",
        "beta": 0.05,
        "max_new_tokens": 32,
        "gradient_checkpointing": False,
        "device": "cpu",
        "save_every": 1,
        "eval_every": 2,
    }


def quiet(line):
    pass


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


def near(a, b, atol):
    assert a.keys() == b.keys()
    return all(torch.allclose(a[key], b[key], rtol=0, atol=atol) for key in a)


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train(GrpoConfig(**values), run, log=quiet) == run / "final"
    return run


def rows(run, name="metrics.jsonl"):
    kept = read_lines(run / name)
    return [{key: v for key, v in row.items() if not key.startswith(TIMES)} for row in kept]


def test_the_run_folder(finished, values, taught):
    found = rows(finished)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert {
        "loss",
        "kl",
        "ratio",
        "grad_norm",
        "reward",
        "reward/redness",
        "reward/blueness",
        "zero_variance",
        "unparsable",
        "words",
    } <= found[0].keys()
    assert [row["step"] for row in rows(finished, "evaluations.jsonl")] == [0, 2, 4]
    lines = read_lines(finished / "rollouts" / "rollouts.jsonl")
    assert {line["step"] for line in lines} == {1, 2, 3, 4}
    pictures = {path.stem for path in finished.glob("rollouts/pictures/*/*.png")}
    assert pictures >= {key for line in lines for key in line["pictures"]}
    page = (finished / "report.html").read_text()
    assert 'http-equiv="refresh"' not in page and "data:image/png" in page
    assert list((finished / "tensorboard").iterdir())
    assert not same(weights(finished / "final"), weights(taught))


def test_the_rewriter_loads_the_trained_weights(finished):
    rewriter = RePromptRewriter(finished / "final", device="cpu")
    # Temperature is the start's own: that of training is for exploring.
    assert (rewriter.system, rewriter.max_new_tokens, rewriter.temperature) == ("Rewrite.", 32, 0.7)
    [[rewrite]] = rewriter.rewrite(["a star"])
    assert rewrite.fallback is None
    assert RePromptRewriter(finished / "best", device="cpu").system == "Rewrite."


def test_it_learns(values, tmp_path):
    """Red is what the judge likes: from a third of the sampled rewrites to most, and all the greedy ones."""
    settings = GrpoConfig(
        **{
            **values,
            "max_steps": 14,
            "learning_rate": 3e-3,
            "scheduler": "constant",
            "prompts_per_step": 4,
            "rewrites": 8,
            "batch_size": 32,
            "beta": 0.0,
            "save_every": 50,
            "eval_every": 14,
        }
    )
    run = tmp_path / "run"
    train(settings, run, log=quiet)
    red = [row["reward/redness"] for row in rows(run)]
    assert sum(red[:3]) / 3 < 0.5 and sum(red[-3:]) / 3 > 0.65
    before, after = (rows(run, "evaluations.jsonl")[i] for i in (0, -1))
    assert before["held-out/redness"] < 0.5 and after["held-out/redness"] > 0.8


# Invariants


def test_the_ratio_is_1_at_the_first_inner_step_and_not_after_it(values, tmp_path, finished):
    for row in rows(finished):
        assert row["ratio"] == pytest.approx(1, abs=1e-4) and row["ratio_off"] < 1e-3
    settings = {**values, "iterations": 2, "save_every": 2, "learning_rate": 1e-2, "eval_prompts": None}
    train(GrpoConfig(**settings), tmp_path / "run", log=quiet)
    first, second, third, fourth = rows(tmp_path / "run")
    assert first["ratio_off"] < 1e-3 < second["ratio_off"] and third["ratio_off"] < 1e-3 < fourth["ratio_off"]
    assert "reward" in first and "reward" not in second  # nothing was rolled out for it


def learnt_from(run, step):
    """(advantage, tokens) of the answers of a step."""
    lines = [line for line in read_lines(run / "rollouts" / "rollouts.jsonl") if line["step"] == step]
    return [(line["advantage"], line["tokens"]) for line in lines if not line["replaced"]]


def loss_by_hand(kind, pairs, longest):
    """The ratio is 1, so that each token's loss is minus its answer's advantage."""
    if kind == "dapo":
        return -sum(a * n for a, n in pairs) / sum(n for _, n in pairs)
    if kind == "dr_grpo":
        return -sum(a * n for a, n in pairs) / (len(pairs) * longest)
    return -sum(a for a, _ in pairs) / len(pairs)


@pytest.mark.parametrize("kind", ["dapo", "dr_grpo", "grpo"])
def test_the_loss_is_the_one_derived_by_hand(kind, values, tmp_path):
    settings = {**values, "loss": kind, "max_steps": 1, "eval_prompts": None, "batch_size": 8}
    train(GrpoConfig(**settings), tmp_path / "run", log=quiet)
    [row] = rows(tmp_path / "run")
    expected = loss_by_hand(kind, learnt_from(tmp_path / "run", 1), longest=32)
    assert row["kl"] == 0 and row["loss"] == pytest.approx(expected, abs=2e-6)


def test_the_kl_is_in_the_loss(finished):
    """With dapo both are means over the batch's tokens, and the ratio is 1."""
    for row in rows(finished)[1:]:
        policy = loss_by_hand("dapo", learnt_from(finished, row["step"]), longest=32)
        assert row["kl"] > 0
        # TRL's figure is the mean of two micro-batches, which differ in length: a fifth of it is left open.
        assert row["loss"] == pytest.approx(policy + 0.05 * row["kl"], abs=0.01 * row["kl"] + 1e-6)


@pytest.mark.parametrize("kind", ["dapo", "dr_grpo", "grpo"])
def test_batches_and_accumulation_give_one_trajectory(kind, values, tmp_path):
    """8 x 1 and 1 x 8: the same rollouts, and weights within the rounding of sums, 2e-5 after three steps."""
    runs = []
    for size in (8, 1):
        settings = {**values, "loss": kind, "batch_size": size, "max_steps": 3, "eval_prompts": None}
        train(GrpoConfig(**settings), tmp_path / str(size), log=quiet)
        runs.append(tmp_path / str(size))
    assert near(weights(runs[0] / "final"), weights(runs[1] / "final"), atol=2e-5)
    records = [read_lines(run / "rollouts" / "rollouts.jsonl") for run in runs]
    assert [line.get("rewrite") for line in records[0]] == [line.get("rewrite") for line in records[1]]
    for one, other in zip(rows(runs[0]), rows(runs[1])):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


# Killed and resumed


def compare(run, finished):
    assert same(weights(run / "final"), weights(finished / "final"))
    for name in ("metrics.jsonl", "evaluations.jsonl", "rollouts/rollouts.jsonl"):
        assert rows(run, name) == rows(finished, name)
    assert same(weights(run / "best"), weights(finished / "best"))


@pytest.mark.parametrize(("where", "step"), [("rollout", 1), ("rollout", 3), ("update", 3), ("save", 3)])
def test_killed_and_resumed_equals_never_killed(where, step, values, finished, tmp_path):
    """SIGKILL while it rolls out, updates or saves; bit for bit."""
    run = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-m", "tests.backend.training.world", str(run), where, str(step)],
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
    train(GrpoConfig(**values), run, resume=True, log=said.append)
    begun = f"going on from checkpoint-{step - 1}" if step > 1 else "from the start"
    assert any(begun in line for line in said)
    compare(run, finished)


def test_an_adapter_resumes_exactly(values, tmp_path):
    changes = {"lora": {"r": 2}, "learning_rate": 1e-2, "iterations": 2, "save_every": 2}
    settings = GrpoConfig(**{**values, **changes})

    def stop(line):
        if line.startswith("step 3/"):
            raise KeyboardInterrupt

    train(settings, tmp_path / "whole", log=quiet)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "stopped", log=stop)
    train(settings, tmp_path / "stopped", resume=True, log=quiet)
    compare(tmp_path / "stopped", tmp_path / "whole")


def test_changed_prompts_stop_a_resumed_run(values, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "final")
    prompts = Path(values["prompts"])
    before = prompts.read_text()
    prompts.write_text(before + "one more\n")
    try:
        with pytest.raises(BadInput, match="or what it names, changed since .* began; bring it back"):
            train(GrpoConfig(**values), run, resume=True, log=quiet)
    finally:
        prompts.write_text(before)
    assert train(GrpoConfig(**values), run, resume=True, log=quiet).is_dir()


def test_a_damaged_checkpoint_is_refused_and_the_one_before_works(values, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "final")
    newest = run / "checkpoints" / "checkpoint-4"
    whole = (newest / "optimizer.pt").read_bytes()
    (newest / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"optimizer.pt is damaged .*delete the folder .*checkpoint-4"):
        train(GrpoConfig(**values), run, resume=True, log=quiet)
    (newest / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        train(GrpoConfig(**values), run, resume=True, log=quiet)
    shutil.rmtree(newest)
    train(GrpoConfig(**values), run, resume=True, log=quiet)
    compare(run, finished)


def test_runs_are_not_mixed_up(finished, values, tmp_path):
    assert train(GrpoConfig(**values), finished, resume=True, log=quiet) == finished / "final"
    with pytest.raises(BadInput, match="--resume"):
        train(GrpoConfig(**values), finished)
    with pytest.raises(BadInput, match="other settings"):
        train(GrpoConfig(**{**values, "beta": 0.1}), finished, resume=True)
    with pytest.raises(BadInput, match="no run to go on with"):
        train(GrpoConfig(**values), tmp_path / "none", resume=True)


# What stops it


def test_a_judge_that_is_down_stops_the_run_with_its_name(values, tmp_path):
    settings = {**values, "rewards": {"fails-always": 1.0, "structure": 0.5}, "eval_prompts": None}
    with pytest.raises(RewardFailed, match="'fails-always'.*the judge is down"):
        train(GrpoConfig(**settings), tmp_path / "run", log=quiet)


def test_a_loss_of_nan_stops_the_run(values, taught, tmp_path, monkeypatch):
    from reprise.backend.training.grpo import loop as grpo_loop

    made = grpo_loop.trainer_class

    def broken():
        class Broken(made()):
            def training_step(self, model, *rest):
                if self.state.global_step == 1:
                    with torch.no_grad():
                        next(model.parameters()).fill_(float("nan"))
                return super().training_step(model, *rest)

        return Broken

    monkeypatch.setattr(grpo_loop, "trainer_class", broken)
    with pytest.raises(TrainingFailed, match=r"2 is nan, and weights are NaN or infinite.*begin another run"):
        train(GrpoConfig(**{**values, "eval_prompts": None}), tmp_path / "run", log=quiet)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1]


@pytest.mark.parametrize("full", ["rollouts", "checkpoint"])
def test_a_full_disk_stops_the_run_and_it_goes_on(full, values, finished, tmp_path, monkeypatch):
    from transformers import Trainer

    run, disk = tmp_path / "run", OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        if full == "checkpoint":
            save = Trainer._save_optimizer_and_scheduler

            def fail(self, folder):
                if self.state.global_step == 3:
                    raise disk
                save(self, folder)

            patch.setattr(Trainer, "_save_optimizer_and_scheduler", fail)
        else:
            opened = Path.open

            def refuse(self, mode="r", *rest, **options):
                later = (run / "checkpoints" / "checkpoint-2").exists()
                if self.name == "rollouts.jsonl" and mode == "a" and later:
                    raise disk
                return opened(self, mode, *rest, **options)

            patch.setattr(Path, "open", refuse)
        with pytest.raises(
            TrainingFailed, match="no space left to write .*; make room, and --resume .* from step 2"
        ):
            train(GrpoConfig(**values), run, log=quiet)
    train(GrpoConfig(**values), run, resume=True, log=quiet)
    compare(run, finished)


@pytest.mark.parametrize(
    ("training", "watched", "stops"),
    [
        ([None, 0.1, 0.2, 0.3], [0.9, 0.8, 0.7, 0.6], True),
        ([None, 0.3, 0.2, 0.1], [0.9, 0.8, 0.7, 0.6], False),
        ([None, 0.1, 0.2, 0.3], [0.9, 0.8, 0.85, 0.6], False),
        ([None, 0.1, 0.2], [0.9, 0.8, 0.7], False),
        ([0.0, None, 0.1, 0.2, 0.3], [0.1, 0.9, 0.8, 0.7, 0.6], True),
    ],
)
def test_signs_of_hacking(training, watched, stops):
    found = [{"training_reward": t, "x": w} for t, w in zip(training, watched)]
    assert looks_like_reward_hacking(found, "x", True, 3) is stops
    assert looks_like_reward_hacking([{**row, "x": -row["x"]} for row in found], "x", False, 3) is stops
    assert not looks_like_reward_hacking(found, "x", True, 0)


def test_it_stops_on_hacking(values, tmp_path, monkeypatch):
    """Training reward rises by the step while the held-out one falls."""
    from reprise.backend.training.grpo.rollouts import GrpoRollouts
    from reprise.backend.training.rollouts import evaluation

    evaluate, fall = evaluation.evaluate, iter((0.9, 0.8, 0.7, 0.6, 0.5))

    def falling(*arguments, **options):
        figures, samples = evaluate(*arguments, **options)
        return {**figures, "held-out/blueness": next(fall)}, samples

    monkeypatch.setattr(evaluation, "evaluate", falling)
    settings = {**values, "patience": 2, "max_steps": 5, "eval_every": 1, "rewrites": 8}
    made, rise = GrpoRollouts.collect, iter(range(9))

    def rising(self, step):
        batch = made(self, step)
        batch.figures["reward"] = 0.1 * next(rise)
        return batch

    monkeypatch.setattr(GrpoRollouts, "collect", rising)
    said = []
    train(GrpoConfig(**settings), tmp_path / "run", log=said.append)
    steps = [row["step"] for row in rows(tmp_path / "run")]
    assert steps == [1, 2] and any("looks like reward hacking" in line for line in said)
    assert (tmp_path / "run" / "final").is_dir()


# Starts and ways


def test_an_adapter_is_merged(values, taught, tmp_path):
    settings = {**values, "lora": {"r": 2}, "learning_rate": 1e-2, "export_dtype": "float16"}
    final = train(GrpoConfig(**settings), tmp_path / "run", log=quiet)
    assert weights(final).keys() == weights(taught).keys()
    assert {tensor.dtype for tensor in weights(final).values()} == {torch.float16}
    RePromptRewriter(final, device="cpu").rewrite(["a star"])
    assert all(row["ratio_off"] < 1e-3 for row in rows(tmp_path / "run"))


def test_from_random_weights(values, taught, tmp_path):
    """Nothing can be read, so nothing is drawn and nothing learnt but the form's absence."""
    settings = {**values, "init": "random", "max_steps": 1, "eval_prompts": None}
    train(GrpoConfig(**settings), tmp_path / "run", log=quiet)
    [row] = rows(tmp_path / "run")
    assert row["unparsable"] == 1 and row["zero_variance"] == 1 and row["loss"] == 0
    assert not same(weights(tmp_path / "run" / "start"), weights(taught))


def test_without_reasoning(values, tmp_path, monkeypatch):
    settings = {**values, "reasoning": False, "max_steps": 1, "eval_prompts": None}
    generate = RePromptRewriter.generate

    def plain(self, *rest):
        from dataclasses import replace

        return [replace(one, text=one.text.split("</reason>")[-1]) for one in generate(self, *rest)]

    monkeypatch.setattr(RePromptRewriter, "generate", plain)
    train(GrpoConfig(**settings), tmp_path / "plain", log=quiet)
    train(GrpoConfig(**{**settings, "reasoning": True}), tmp_path / "asked", log=quiet)
    for name, score in (("plain", 1.0), ("asked", -1.0)):
        lines = read_lines(tmp_path / name / "rollouts" / "rollouts.jsonl")
        assert {r["scores"]["structure"] for r in lines if "rewrite" in r} == {score}


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 3}, "divisor of 8"),
        ({"rewrites": 1}, "rewrites"),
        ({"rewards": {"redness": 1}}, "structure"),
        ({"rewards": {"structure": 1}}, "no reward looks"),
        ({"rewards": {"rednes": 1, "structure": 1}}, "did you mean 'redness'"),
        ({"rewards": {"redness": 0, "structure": 1}}, "redness: input should be greater"),
        ({"held_out": ["redness"]}, "one of the two"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout=0"),
        ({"iterations": 2, "save_every": 3}, "multiple of iterations"),
        ({"max_dropped": 1}, "max_dropped"),
        ({"scheduler": "constant", "warmup_ratio": 0.1}, "warmup_ratio=0"),
        ({"offload": True}, "offload"),
        ({"init": "random", "lora": {}}, "adapter on random weights"),
        ({"dtype": "bfloat16"}, "dtype=float32"),
    ],
)
def test_impossible_settings_are_refused_with_a_remedy(changes, message, values):
    with pytest.raises(BadInput, match=message):
        parse_config(GrpoConfig, {**values, **changes}, "test")


def test_unknown_settings_are_refused_with_the_near_match(values):
    with pytest.raises(UnknownName, match="rewrites"):
        parse_config(GrpoConfig, {**values, "rewrits": 4}, "test")
    with pytest.raises(UnknownName, match="steps"):
        parse_config(GrpoConfig, {**values, "renderer": {"name": "words", "step": 4}}, "test")


def test_prompts_that_cannot_be_trained_on(values, tmp_path):
    shared = tmp_path / "shared.txt"
    shared.write_text("a square\na star\n")
    with pytest.raises(BadInput, match="'a star' is trained on"):
        train(GrpoConfig(**{**values, "eval_prompts": str(shared)}), tmp_path / "a", log=quiet)
    long = tmp_path / "long.txt"
    long.write_text("a star " * 200)
    with pytest.raises(BadInput, match="tokens with its instructions"):
        train(GrpoConfig(**{**values, "prompts": str(long)}), tmp_path / "b", log=quiet)
    assert not any((tmp_path / name).exists() for name in "ab")  # the mended call may take the same folder


def test_roles_that_cannot_be_are_refused_with_the_settings(values):
    for settings, says in (
        ({"renderer": {"name": "shapewrld"}}, "unknown renderer 'shapewrld'; did you mean 'shapeworld'"),
        ({"renderer": {"name": "words", "size": 64}}, "renderer 'words' does not take size"),
        ({"rewards": {"rednes": 1, "structure": 1}}, "did you mean 'redness'"),
        ({"held_out": ["vlm:no/where"]}, "there is no folder no/where"),
    ):
        with pytest.raises(BadInput, match=says):
            parse_config(GrpoConfig, {**values, **settings}, "settings")
