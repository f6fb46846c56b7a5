"""What the tiny judge's tower and the words of a question are made to name."""

import random

import pytest
import torch
from PIL import Image

from reprise.backend.lab.weights import grounding, judge, judge_data
from reprise.backend.rewards.vlm.local import LocalVLM
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.scenes import SHAPES, Scene, Thing, random_scene
from reprise.backend.training.judge.batch import encode


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The first stage, stopped before it has learned much."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("grounding")
    judge.train_vision(folder, steps=3, log=lambda line: None)
    return folder


def test_the_names_of_a_scenes_tokens():
    scene = random_scene(random.Random(3))
    named = grounding.patch_names(scene)
    things = [row for row in named if row[1] < len(SHAPES)]
    assert sorted(grounding.NAMES[1][row[1]] for row in things) == sorted(t.shape for t in scene.things)
    assert sorted(grounding.NAMES[0][row[0]] for row in things) == sorted(t.color for t in scene.things)
    assert named[0][2:] == [0, 0] and named[-1][2:] == [2, 2] and len(named) == grounding.TOKENS**2


SAID = 'show "a red circle and two stars on a pink background"? Please'.replace('"', ' " ').split()


def test_nouns_refer_to_things_and_grounds():
    first, second = (Thing("circle", color, x, 20, 8) for color, x in (("red", 20), ("blue", 60)))
    star = Thing("star", "green", 100, 100, 8)
    found = grounding.noun_referents(SAID, Scene("pink", (first, second, star)))
    assert [(SAID[i], meant) for i, meant in found] == [
        ("circle", [first]),
        ("stars", [star]),
        ("background", ["pink"]),
    ]
    assert [meant for _, meant in grounding.noun_referents(SAID, Scene("grey", (second,)))] == [[], [], []]


def test_nouns_are_learned_by_the_language_model(work):
    """The loss is of the question's nouns alone, and reaches the layers below, not those above."""
    vlm = LocalVLM(work / "see", device="cpu", dtype="float32")
    vlm.model.requires_grad_(True)
    finding = grounding.NounGrounding(vlm.model, vlm.tokenizer)
    asks, scenes = judge_data.sample_batch(random.Random(0), judge_data.by_task(), 8)
    batch = encode(vlm, asks)
    vlm.model(**batch.inputs)
    finding.loss(batch.inputs["input_ids"], batch.starts, scenes).backward()
    layers = vlm.model.model.text_model.layers
    reached = [layer.self_attn.q_proj.weight.grad is not None for layer in layers]
    assert reached == [n <= grounding.FOUND_AFTER for n in range(len(layers))]
    assert vlm.model.model.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    described = [n for n, ask in enumerate(asks) if ask.question == judge_data.DESCRIBE][:1]
    some = [batch.starts[n] for n in described], [scenes[n] for n in described]
    assert finding.loss(batch.inputs["input_ids"][described], *some).item() == 0, "it asks about no noun"


def test_pixels_equal_the_processors(work):
    scenes = [random_scene(random.Random(n)) for n in range(2)]
    vlm = LocalVLM(work / "see", device="cpu")
    drawn = [Image.fromarray(draw(scene)) for scene in scenes]
    inputs = vlm.inputs(["?", "?"], drawn)
    assert torch.equal(inputs["pixel_values"], grounding.to_pixels([draw(scene) for scene in scenes]))
    eyes = grounding.patch_naming(vlm.model, vlm.tokenizer)
    eyes(inputs["pixel_values"])
    assert eyes.features.shape == (2, grounding.TOKENS**2, 128) and 0 <= eyes.accuracy(scenes) <= 1
