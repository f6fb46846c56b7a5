"""The tiny judge's pieces: its words, its eyes, what drawings teach, and both stages at a few steps."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.lab.weights import ablation, judge, judge_data
from reprise.backend.rewards.shapeworld import is_right
from reprise.backend.rewards.vlm.judge import vlm_judge
from reprise.backend.rewards.vlm.questions import CRITIQUE, QUESTIONS
from reprise.backend.shapeworld.detector import read_scene
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.prompts import prompts, sample_layout


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Both stages, stopped before they have learned much."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("judge")
    judge.train_vision(folder, steps=3, log=lambda line: None)
    judge.train_base(folder, steps=2, log=lambda line: None)
    return folder


def test_every_word_of_a_question_is_a_token():
    words = judge.tokenizer()
    for question in (*QUESTIONS.values(), CRITIQUE, judge_data.DESCRIBE):
        asked = question.format("a photo of two red circles above a grey heart on a beige background")
        pieces = words.tokenize(asked)
        assert words.decode(words(asked)["input_ids"]) == asked
        assert len(pieces) <= 1.35 * len(asked.split()) + 4, pieces


def test_the_base_is_a_judge_of_a_few_megabytes(work):
    vlm = vlm_judge(str(work / "base"), device="cpu")
    assert 1e6 < sum(one.numel() for one in vlm.model.parameters()) < 3e6  # half precision: two bytes each
    images = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    assert all(0 < p < 1 for p in vlm.score(images, ["a photo of a ring", "a photo of two red hearts"]))


def test_a_perfect_reading_equals_the_detectors():
    cases = judge_data.by_task()
    draw_of = random.Random(0)
    right = agree = 0
    for _ in range(60):
        case, scene = judge_data.sample_example(draw_of, cases)
        truth = is_right(case, judge_data.perfect_reading(scene))
        agree += truth == is_right(case, read_scene(draw(scene)))
        right += truth
    assert agree >= 58 and 20 < right < 45


def test_corrupted_scenes_can_be_drawn():
    draw_of = random.Random(1)
    for case in draw_of.sample(prompts("train"), 40):
        scene = judge_data.corrupt_scene(sample_layout(case, draw_of), draw_of)
        assert draw(scene).shape == (128, 128, 3)


def test_a_batch_holds_every_kind_of_question():
    asks, scenes = judge_data.sample_batch(random.Random(0), judge_data.by_task(), 64)
    assert len(asks) == len(scenes) == 64
    texts = [ask for ask in asks if isinstance(ask.answer, str)]
    assert {ask.question == judge_data.DESCRIBE for ask in texts} == {True, False}
    said = [ask.answer for ask in asks if isinstance(ask.answer, bool)]
    assert 0.3 < sum(said) / len(said) < 0.7


def test_finished_stages_are_not_repeated(work, monkeypatch):
    monkeypatch.setattr(judge, "tune", lambda work, log: work / "tuned" / "final")
    said = []
    assert judge.build(work, said.append) == work / "tuned" / "final"
    assert said == ["stage: see", "stage: base", "stage: tuned"]


def test_the_judge_is_tuned_on_renders_and_saved_in_half_precision(work, tmp_path, monkeypatch):
    """The third stage at a few steps of a tiny drawing."""
    shutil.copytree(work / "base", tmp_path / "base")
    monkeypatch.setattr(judge, "PROMPTS", "shapeworld:1")
    monkeypatch.setattr(judge, "RENDERS", 1)
    plain = ablation.run_of
    monkeypatch.setattr(
        ablation,
        "run_of",
        lambda name, settings, *rest: plain(
            name, {**settings, "max_steps": 2, "batch_size": 4, "eval_most": 8}, *rest
        ),
    )
    final, another = (judge.tune(tmp_path, lambda line: None, seed) for seed in (0, 1))
    assert (final, another) == (tmp_path / "tuned" / "final", tmp_path / "tuned-1" / "final")
    drawn = [
        {Path(json.loads(line)["image"]).name for line in (tmp_path / name).read_text().splitlines()}
        for name in ("judge.jsonl", "judge-1.jsonl")
    ]
    assert all(drawn) and not drawn[0] & drawn[1]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("card")
    out = judge.assemble(final, tmp_path / "out")
    assert {p.name for p in out.iterdir()} >= {"README.md", "model.safetensors", "reprise.json"}
    assert {one.dtype for one in load_file(out / "model.safetensors").values()} == {torch.float16}
    assert (out / "model.safetensors").stat().st_size < 5e6 and not (tmp_path / "out.half").exists()
