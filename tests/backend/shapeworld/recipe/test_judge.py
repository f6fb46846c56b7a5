"""The tiny judge's pieces: its words, its eyes, what drawings teach, and both stages at a few steps."""

import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.rewards.shapeworld import is_right
from reprise.backend.rewards.vlm import vlm_judge
from reprise.backend.rewards.vlm_local import LocalVLM
from reprise.backend.rewards.vlm_questions import CRITIQUE, QUESTIONS
from reprise.backend.shapeworld.detector import read
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.prompts import layout, prompts
from reprise.backend.shapeworld.recipe import ablation, judge
from reprise.backend.shapeworld.scenes import SHAPES, Scene, Thing, random_scene
from reprise.backend.trainers.judge_batch import encode


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Both stages, stopped before they have learned much."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("judge")
    judge.train_seeing(folder, steps=3, log=lambda line: None)
    judge.train_base(folder, steps=2, log=lambda line: None)
    return folder


def test_every_word_of_a_question_is_a_token():
    words = judge.tokenizer()
    for question in (*QUESTIONS.values(), CRITIQUE, judge.DESCRIBE):
        asked = question.format("a photo of two red circles above a grey heart on a beige background")
        pieces = words.tokenize(asked)
        assert words.decode(words(asked)["input_ids"]) == asked
        assert len(pieces) <= 1.35 * len(asked.split()) + 4, pieces


def test_the_base_is_a_judge_of_a_few_megabytes(work):
    vlm = vlm_judge(str(work / "base"), device="cpu")
    assert 1e6 < sum(one.numel() for one in vlm.model.parameters()) < 3e6  # half precision: two bytes each
    images = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    assert all(0 < p < 1 for p in vlm.score(images, ["a photo of a ring", "a photo of two red hearts"]))


def test_what_it_sees_is_what_the_processor_gives(work):
    scenes = [random_scene(random.Random(n)) for n in range(2)]
    vlm = LocalVLM(work / "see", device="cpu")
    drawn = [judge.Image.fromarray(draw(scene)) for scene in scenes]
    inputs = vlm.inputs(["?", "?"], drawn)
    assert torch.equal(inputs["pixel_values"], judge.pixels([draw(scene) for scene in scenes]))
    eyes = judge.seeing(vlm.model, vlm.tokenizer)
    eyes(inputs["pixel_values"])
    assert eyes.seen.shape == (2, judge.TOKENS**2, 128) and 0 <= eyes.right(scenes) <= 1


def test_names_of_a_scene():
    scene = random_scene(random.Random(3))
    named = judge.names(scene)
    things = [row for row in named if row[1] < len(SHAPES)]
    assert sorted(judge.NAMES[1][row[1]] for row in things) == sorted(t.shape for t in scene.things)
    assert sorted(judge.NAMES[0][row[0]] for row in things) == sorted(t.color for t in scene.things)
    assert named[0][2:] == [0, 0] and named[-1][2:] == [2, 2] and len(named) == judge.TOKENS**2


def test_truth_is_what_the_detector_reads():
    cases = judge.by_task()
    draw_of = random.Random(0)
    right = agree = 0
    for _ in range(60):
        case, scene = judge.example(draw_of, cases)
        truth = is_right(case, judge.truth(scene))
        agree += truth == is_right(case, read(draw(scene)))
        right += truth
    assert agree >= 58 and 20 < right < 45


def test_mistaken_scenes_are_drawable():
    draw_of = random.Random(1)
    for case in draw_of.sample(prompts("train"), 40):
        scene = judge.mistaken(layout(case, draw_of), draw_of)
        assert draw(scene).shape == (128, 128, 3)


def test_a_batch_asks_everything():
    asks, scenes = judge.taught(random.Random(0), judge.by_task(), 64)
    assert len(asks) == len(scenes) == 64
    texts = [ask for ask in asks if isinstance(ask.answer, str)]
    assert {ask.question == judge.DESCRIBE for ask in texts} == {True, False}
    said = [ask.answer for ask in asks if isinstance(ask.answer, bool)]
    assert 0.3 < sum(said) / len(said) < 0.7


SAID = 'show "a red circle and two stars on a pink background"? Please'.replace('"', ' " ').split()


def test_what_nouns_point_at():
    first, second = (Thing("circle", color, x, 20, 8) for color, x in (("red", 20), ("blue", 60)))
    star = Thing("star", "green", 100, 100, 8)
    found = judge.pointed_at(SAID, Scene("pink", (first, second, star)))
    assert [(SAID[i], meant) for i, meant in found] == [
        ("circle", [first]), ("stars", [star]), ("background", ["pink"])
    ]  # fmt: skip
    assert [meant for _, meant in judge.pointed_at(SAID, Scene("grey", (second,)))] == [[], [], []]


def test_nouns_are_learned_by_the_language_model(work):
    """The loss is of the question's nouns alone, and reaches the layers below, not those above."""
    vlm = LocalVLM(work / "see", device="cpu", dtype="float32")
    vlm.model.requires_grad_(True)
    finding = judge.Finding(vlm.model, vlm.tokenizer)
    asks, scenes = judge.taught(random.Random(0), judge.by_task(), 8)
    batch = encode(vlm, asks)
    vlm.model(**batch.inputs)
    finding.loss(batch.inputs["input_ids"], batch.starts, scenes).backward()
    layers = vlm.model.model.text_model.layers
    reached = [layer.self_attn.q_proj.weight.grad is not None for layer in layers]
    assert reached == [n <= judge.FOUND_AFTER for n in range(len(layers))]
    assert vlm.model.model.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    described = [n for n, ask in enumerate(asks) if ask.question == judge.DESCRIBE][:1]
    some = [batch.starts[n] for n in described], [scenes[n] for n in described]
    assert finding.loss(batch.inputs["input_ids"][described], *some).item() == 0, "it asks about no noun"


def test_a_stage_that_is_done_is_not_done_again(work, monkeypatch):
    monkeypatch.setattr(judge, "tune", lambda work, log: work / "tuned" / "final")
    said = []
    assert judge.build(work, said.append) == work / "tuned" / "final"
    assert said == ["stage: see", "stage: base", "stage: tuned"]


def test_tuned_on_the_renderers_pictures_and_stored_in_halves(work, tmp_path, monkeypatch):
    """The third stage at a few steps of a tiny drawing."""
    shutil.copytree(work / "base", tmp_path / "base")
    monkeypatch.setattr(judge, "PROMPTS", "shapeworld:3")
    monkeypatch.setattr(judge, "RENDERS", 1)
    plain = ablation.run_of
    monkeypatch.setattr(ablation, "run_of", lambda trainer, config, settings, *rest: plain(
        trainer, config, {**settings, "max_steps": 2, "batch_size": 4, "eval_most": 8}, *rest))
    final = judge.tune(tmp_path, lambda line: None)
    assert (tmp_path / "judge.jsonl").exists() and final == tmp_path / "tuned" / "final"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("card")
    out = judge.assemble(final, tmp_path / "out")
    assert {p.name for p in out.iterdir()} >= {"README.md", "model.safetensors", "reprise.json"}
    assert {one.dtype for one in load_file(out / "model.safetensors").values()} == {torch.float16}
    assert (out / "model.safetensors").stat().st_size < 5e6 and not (tmp_path / "out.half").exists()
