"""The training benchmark: its arithmetic by hand, the loop it compares with, the floor, one small run."""

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from reprise.backend.core.config import load_config
from reprise.backend.core.errors import BadInput, RepriseError
from reprise.backend.core.types import Job, RewardSpec
from reprise.backend.lab.bench import grpo
from reprise.backend.lab.bench.floor import NetworkProbe
from reprise.backend.lab.bench.grpo import EQUAL, OWN, bench, result_of, speedup
from reprise.backend.lab.bench.reprompt_loop import (
    UNREADABLE_PROMPT,
    PlainPipeline,
    RewardFunctions,
    make_trainer,
)
from reprise.backend.renderers.fake import FakeRenderer
from reprise.backend.renderers.shapeworld import ShapeWorldRenderer
from reprise.backend.reports.figures import render_figures
from reprise.backend.rewards.base import BaseReward
from reprise.backend.rewards.text import Structure
from reprise.backend.rewriters.prompting import prompt_ids
from reprise.backend.rewriters.reprompt import EMBEDDED_REWRITER, RePromptRewriter
from reprise.backend.storage.images import from_pil
from reprise.backend.training import shipped_config
from reprise.backend.training.grpo.config import GrpoConfig

from ....fake_comfyui import GRAPH
from ...cli.conftest import reprise  # noqa: F401

SHIPPED = shipped_config("grpo", "shapeworld")


def step(seconds, **did):
    timer = dict.fromkeys(("write", "render", "score", "update", "record"), seconds / 5)
    counts = {
        "processor": seconds,
        "answers": 4,
        "unreadable": 0,
        "pictures": 4,
        "reused": 0,
        "rows": 64,
        "groups": 2,
        "signal": 1,
    }
    return {"seconds": seconds, "phases": timer, **counts, **did}


# Arithmetic


def test_the_speedup_equals_that_computed_by_hand():
    ours, theirs = [step(1.0), step(3.0, pictures=12)], [step(8.0), step(8.0)]
    assert speedup(ours, theirs, None)[0] == 4.0
    # 16 pictures in 4 seconds, against 8 in 16.
    value, low, high = speedup(ours, theirs, "pictures")
    assert value == 8.0 and low == high == 8.0
    assert speedup(ours, theirs, None)[1:] == [pytest.approx(8 / 3, abs=1e-3), 8.0]
    assert speedup([step(1.0, signal=0)], [step(1.0)], "signal") is None


def test_the_result_equals_that_computed_by_hand():
    floor = {"write": 0.1, "render": 1.0, "update": 0.4}
    found = {
        "ours": [step(2.0, pictures=8), step(2.0, signal=3)],
        "floor": [floor, floor],
        OWN: [step(10.0), step(10.0)],
        EQUAL: [step(6.0), step(6.0, signal=0)],
    }
    result = result_of(found, ours=8, steps={OWN: 16, EQUAL: 8})
    rows = {row["name"]: row for row in result["rows"]}
    assert len(rows) == 7
    whole = rows["seconds per optimiser step, each at its own steps (8 and 16)"]
    assert whole["overall"] == [5.0, 5.0, 5.0] and whole["cost"] == {"ours": 2.0, "other": 10.0}
    pictures = rows["pictures per second, each at its own steps (8 and 16)"]
    assert pictures["overall"][0] == 7.5 and pictures["cost"] == {"ours": 3.0, "other": 0.4}
    signal = rows["seconds per group with signal, at equal steps (8)"]
    assert signal["overall"][0] == 12.0 and signal["cost"] == {"ours": 1.0, "other": 12.0}
    assert rows["share of our step that the networks alone take"]["overall"] == [0.75, 0.75, 0.75]
    timer, did = result["tables"]
    assert timer["columns"] == ["", "ours", "its floor", "share", "other, 16 steps", "other, 8 steps"]
    assert timer["rows"][1] == ["drawing", 0.4, 1.0, 2.5, 2.0, 1.2]
    assert timer["rows"][2][1:4] == [0.4, None, None] and timer["rows"][-1][:4] == ["all", 2.0, 1.5, 0.75]
    assert ["pictures drawn", 6.0, 4.0, 4.0] in did["rows"]
    page = render_figures({**result, "settings": {}})
    assert "Seconds of a step, mean" in page and "<td>drawing</td><td>0.4</td><td>1</td><td>2.5</td>" in page


def test_equal_step_numbers_give_one_comparison():
    result = result_of(
        {"ours": [step(1.0)], "floor": [{"write": 0.5}], EQUAL: [step(2.0)]}, ours=16, steps={EQUAL: 16}
    )
    assert [row["overall"][0] for row in result["rows"]] == [2.0, 2.0, 2.0, 0.5]


# The loop to compare with


@pytest.fixture(scope="module")
def renderer():
    torch.set_num_threads(1)
    return ShapeWorldRenderer(steps=2, device="cpu")


def test_the_plain_pipeline_draws_the_renderers_picture(renderer):
    pipeline = PlainPipeline(renderer)
    torch.manual_seed(5)
    theirs = from_pil(pipeline.draw("a photo of a red circle"))
    ours = renderer.render([Job("a photo of a red circle", 5)]).images[0]
    assert (theirs - ours).abs().max() < 2 / 255
    assert pipeline.rows_each == 2 and pipeline.renderer.max_sequence_length == 48
    with pytest.raises(BadInput, match="and fake has none"):
        PlainPipeline(FakeRenderer())


class Brightness(BaseReward):
    spec = RewardSpec("brightness", 0.0, 1.0)

    def __init__(self):
        self.asked = []

    def score(self, images, prompts):
        self.asked.append((len(images), *prompts))
        return images.mean((1, 2, 3)).tolist()


class Painter:
    """Draws a grey picture whose brightness is the prompt's length."""

    def __init__(self):
        self.drawn = []

    def draw(self, prompt):
        from PIL import Image

        self.drawn.append(prompt)
        return Image.new("RGB", (4, 4), (len(prompt),) * 3)


def test_each_answer_is_drawn_and_judged_by_itself():
    painter, judge, timed = Painter(), Brightness(), Counter()

    def timer(name):
        timed[name] += 1
        return nullcontext()

    reward_functions = RewardFunctions(
        painter,
        {"brightness": judge, "structure": Structure()},  # pyright: ignore
        {"brightness": 2.0, "structure": 0.25},
        timer,
    )
    good = "<reason>r</reason><prompt>a red star</prompt>"
    completions = [[{"role": "assistant", "content": text}] for text in (good, good, "no answer")]
    user_prompt, judge_prompt = ["star"] * 3, ["a star"] * 3
    [score_pictures, structure], weights = reward_functions.functions()
    scores = score_pictures(
        completions=completions, user_prompt=user_prompt, judge_prompt=judge_prompt, prompts=None
    )
    assert painter.drawn == ["a red star", "a red star", UNREADABLE_PROMPT]  # the same one twice
    assert judge.asked == [(1, "a star")] * 3 and timed == {"render": 3, "score": 3}
    assert scores == pytest.approx([20 / 255, 20 / 255, 14 / 255])
    assert structure(completions=completions, user_prompt=user_prompt) == [1.0, 1.0, -1.0] and weights == [
        1.0,
        0.25,
    ]
    assert (reward_functions.drawn, reward_functions.unreadable) == (3, 1)
    assert (
        reward_functions.scores["structure"] == [1.0, 1.0, -1.0]
        and len(reward_functions.scores["brightness"]) == 3
    )


@pytest.fixture(scope="module")
def rewriter():
    return RePromptRewriter(EMBEDDED_REWRITER, device="cpu", max_new_tokens=8)


def test_the_peers_prompts_equal_ours(rewriter, tmp_path):
    reward_functions = RewardFunctions(
        Painter(),
        {"brightness": Brightness()},
        {"brightness": 1.0},  # pyright: ignore
        lambda name: nullcontext(),
    )
    prompts = [(f"a photo of a {color} star", "") for color in ("red", "blue", "red", "green")]
    settings = {
        "output_dir": str(tmp_path),
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "use_cpu": True,
    }
    trainer = make_trainer(
        model=rewriter.model,
        tokenizer=rewriter.tokenizer,
        system=rewriter.system,
        prompts=prompts,
        reward_functions=reward_functions,
        settings=settings,
    )
    batches = [[row["user_prompt"] for row in batch] for batch in trainer.get_train_dataloader()]
    assert batches == [[prompts[i][0] for i in (0, 0, 1, 1)], [prompts[i][0] for i in (2, 2, 3, 3)]]
    ids = trainer._tokenize_prompts([row["prompt"] for row in trainer.train_dataset])[0]
    expected = [prompt_ids(rewriter.tokenizer, one, system=rewriter.system) for one, _ in prompts]
    assert [list(row) for row in ids] == expected


# The floor


def test_the_probe_counts_and_changes_nothing(renderer, rewriter):
    before = {key: value.clone() for key, value in rewriter.model.state_dict().items()}
    witness = NetworkProbe(renderer, rewriter, nullcontext)
    assert witness.render_seconds() == 0
    renderer.render([Job("a red circle", i) for i in range(3)])
    renderer.render([Job("a blue circle", 9)])
    assert witness.rows == (3 + 1) * 2 * 2 and witness.pictures == 4
    ids = prompt_ids(rewriter.tokenizer, "a red circle", system=rewriter.system)
    written = rewriter.generate([ids, ids[:-2]], [1, 2])
    assert witness.render_seconds() > 0 and witness.write_seconds() > 0
    rows = [(ids, written[0].ids), (ids[:-2], written[1].ids)]
    assert witness.update_seconds(rewriter.model, rows, 1) > 0
    assert (witness.rows, witness.pictures) == (16, 4)
    assert all(parameter.grad is None for parameter in rewriter.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in rewriter.model.state_dict().items())
    witness.reset()
    assert (witness.rows, witness.pictures) == (0, 0)


# Whole


def settings(*words):
    small = ("prompts_per_step=1", "rewrites=2", "batch_size=2", "renderer.steps=1", "resample=0")
    return load_config(GrpoConfig, SHIPPED, [*small, *words]).model_dump(mode="json")


def test_a_small_benchmark_runs_to_the_end():
    calls = []
    result = bench(settings(), pairs=1, progress=lambda *words: calls.append(words))
    assert calls[-1] == ("steps", 1, 1) and json.dumps(result, allow_nan=False)
    names = [row["name"] for row in result["rows"]]
    assert names[0] == "seconds per optimiser step, each at its own steps (1 and 16)"
    assert "pictures per second, at equal steps (1)" in names
    assert all(row["overall"][0] > 0 for row in result["rows"])
    timer, did = result["tables"]
    counts = {row[0]: row[1:] for row in did["rows"]}
    assert counts["answers"] == [2, 2, 2] and counts["groups"] == [1, 1, 1]
    assert counts["pictures drawn"][1:] == [2, 2] and counts["denoiser rows"][1:] == [2 * 2 * 16, 2 * 2]
    assert counts["denoiser rows"][0] == 2 * counts["pictures drawn"][0]
    for column in (1, 4, 5):
        *parts, whole = [row[column] for row in timer["rows"]]
        assert sum(parts) == pytest.approx(whole, abs=0.01) and min(parts) >= 0
    assert result["settings"]["sides"]["peer"]["steps"] == 16


SPEAKS = """
import json, pathlib, sys
side, folder, settings = sys.argv[1], pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])
assert settings["max_steps"] == 4 and settings["eval_prompts"] is None
print(json.dumps({"steps": {"ours": 8, "peer": 16}[side]}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    with open("asked", "a") as file:
        file.write(f"{side} {asked['do']} {asked.get('steps', '')}\\n")
    step = {"seconds": 1.0, "phases": {}, "pictures": 1, "signal": 1}
    print(json.dumps({"write": 0.5} if asked["do"] == "floor" else step), flush=True)
"""


def test_the_two_loops_take_turns(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grpo, "SCRIPT", tmp_path / "speaks.py")
    grpo.SCRIPT.write_text(SPEAKS)
    bench(settings(), pairs=3)
    forth = ["ours step ", "ours floor ", "peer step 16", "peer step 8"]
    back = ["peer step 8", "peer step 16", "ours step ", "ours floor "]
    assert Path("asked").read_text().splitlines() == [*forth, *back, *forth]


def test_a_failed_loop_is_reported_with_its_error(monkeypatch, tmp_path):
    monkeypatch.setattr(grpo, "SCRIPT", tmp_path / "breaks.py")
    grpo.SCRIPT.write_text("raise ValueError('no such prompts')")
    with pytest.raises(RepriseError, match="measuring ours failed: ValueError: no such prompts"):
        bench(settings(), pairs=1)


# The command


def test_the_command_passes_its_settings_on(reprise, monkeypatch, tmp_path):  # noqa: F811
    asked = []

    def fake(settings, **options):
        asked.append((GrpoConfig(**settings), options["pairs"]))
        return {
            **result_of(
                {"ours": [step(1.0)], "floor": [{"write": 0.5}], EQUAL: [step(2.0)]}, ours=8, steps={EQUAL: 8}
            ),
            "settings": {},
        }

    monkeypatch.setattr("reprise.backend.lab.bench.grpo.bench", fake)
    words = ("lab", "bench", "grpo", "--out", "r")
    done = reprise(*words, "--prompts-per-step", 3, "--rewrites", 4, "--steps", 5, "--pairs", 2, "--seed", 7)
    assert done.code == 0 and "2.000 [2.000, 2.000]" in done.out and "denoiser rows" in done.out
    assert "Seconds of a step" in (tmp_path / "r" / "index.html").read_text()
    config, pairs = asked[0]
    assert (config.prompts_per_step, config.rewrites, config.renderer.steps, config.seed) == (3, 4, 5, 7)
    assert config.batch_size == 12 and pairs == 2  # what 64 rows at once leave of 12
    assert reprise(*words).code == 0
    assert asked[1] == (load_config(GrpoConfig, SHIPPED), 5)


@pytest.mark.parametrize(
    "words,part",
    [
        (["--rewrites", "1"], "rewrites: input should be greater than or equal to 2"),
        (["--prompts-per-step", "0"], "prompts_per_step: input should be greater than 0"),
        (["--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--config", "servers.yaml"], "a ComfyUI server has none; give a config whose renderer has one"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(reprise, tmp_path, words, part):  # noqa: F811
    drawn = "{name: 'comfyui:a.json@http://localhost:1'}"
    (tmp_path / "a.json").write_text(json.dumps(GRAPH))
    (tmp_path / "servers.yaml").write_text(f"model: shapeworld\nprompts: shapeworld\nrenderer: {drawn}\n")
    done = reprise("lab", "bench", "grpo", *words, "--out", "r")
    assert done.code == 2 and done.out == "" and part in " ".join(done.err.split()), done.err
    assert not (tmp_path / "r").exists()
