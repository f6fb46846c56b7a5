"""GenEval's judge over tiny random weights, against the original's detections and colours, and over a
detector that sees what it is told to."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from reprise.backend.core.errors import BadInput, CheckpointError
from reprise.backend.core.interfaces import Critic
from reprise.backend.rewards.geneval.judge import (
    GenEval,
    GenEvalStrict,
    is_unused,
    load_detector,
    prepare,
    resize_mask,
)
from reprise.backend.rewards.geneval.prompts import CLASSES, COLORS
from reprise.backend.rewards.geneval.rules import ObjectDetection
from reprise.backend.rewards.published.files import JUDGES

from ....data.geneval import scenes
from ....data.rewards import tiny
from ..conftest import clip_folder, openai_layout

GOLDEN = json.loads((scenes.HERE / "golden.json").read_text(encoding="utf-8"))
FOLDER = "mask2former-swin-small-coco-instance"
BOTH = [GenEval, GenEvalStrict]


def detector_tensors():
    shapes = GOLDEN["detector"]["shapes"]
    drawn = scenes.sharpened(tiny.weights(shapes))
    made = {name: torch.from_numpy(value.copy()) for name, value in drawn.items()}
    # Where each of a window's 4 pixels lies from each other one; the published file holds these tables too.
    y, x = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    table = (y[:, None] - y + 1) * 3 + x[:, None] - x + 1
    return {
        name: table.clone() if name.endswith("relative_position_index") else value
        for name, value in made.items()
    }


def write_folder(folder, tensors, config=scenes.DETECTOR):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"image_mean": scenes.MEAN, "image_std": scenes.STD, "size": {"height": 384, "width": 384}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def models(golden, tmp_path_factory):
    """A models folder with the tiny detector and CLIP."""
    root = tmp_path_factory.mktemp("geneval")
    write_folder(root / "judges" / FOLDER, detector_tensors())
    clip_folder(root / "judges" / "clip-vit-large-patch14", *openai_layout(golden["openai_clip"]["shapes"]))
    return root


@pytest.fixture
def installed(models, monkeypatch):
    monkeypatch.setenv("REPRISE_MODELS", str(models))
    return models / "judges"


@pytest.fixture(scope="module")
def judge(models):
    return GenEval(models / "judges" / FOLDER, device="cpu", side=scenes.SIDE)


class Told(torch.nn.Module):
    """A detector that sees `things`: (class, chance, box in 0..1 of what it is shown, padding included)."""

    def __init__(self, *things):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.things = things

    def forward(self, pixel_values):
        high, wide = (side // 4 for side in pixel_values.shape[2:])
        classes = torch.full((1, 100, 81), -30.0)
        classes[..., 80] = 30.0
        masks = torch.full((1, 100, high, wide), -30.0)
        for query, (name, chance, (left, top, right, bottom)) in enumerate(self.things):
            classes[0, query, 80] = 0.0
            classes[0, query, CLASSES.index(name)] = math.log(chance / (1 - chance))
            rows = slice(round(top * high), round(bottom * high))
            masks[0, query, rows, round(left * wide) : round(right * wide)] = 30.0
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


@pytest.fixture
def told(models):
    """A judge that sees what `told(...)` says and calls all of it blue. It shows its detector pictures whose
    shortest side is 64."""

    def make(*things, of=GenEval, **options):
        made = of(models / "judges" / FOLDER, device="cpu", side=64, **options)
        made.model["detector"] = Told(*things)
        made.colors = lambda *_: {color: 0.91 if color == "blue" else 0.01 for color in COLORS}
        return made

    return make


def pictures(count, width=64, height=40):
    first = torch.from_numpy(tiny.picture(width, height))
    return torch.stack([first.roll(3 * i, 1) for i in range(count)]) / 255


@pytest.mark.parametrize("size", [f"{w}x{h}" for w, h in scenes.SIZES])
def test_detections_equal_the_originals(size, judge):
    picture = Image.fromarray(tiny.picture(*map(int, size.split("x"))))
    want, got = GOLDEN["detector"]["found"][size], judge.detect(picture, set(CLASSES))
    assert len(got) == len(want) > 20
    for (seen, mask), expected in zip(got, want):
        assert CLASSES.index(seen.name) == expected["label"]
        assert seen.confidence == pytest.approx(expected["confidence"], abs=1e-4)
        assert list(seen.box) == expected["box"] and seen.colors is None
        # Of some ten thousand pixels one or two lie so near 0 that rounding decides.
        assert mask.shape == picture.size[::-1] and abs(int(mask.sum()) - expected["area"]) <= 3
    few = judge.detect(picture, {"person", "zebra"})
    expected = [seen for seen, _ in got if seen.name in ("person", "zebra")]
    assert [seen for seen, _ in few] == expected


@pytest.mark.parametrize("row", GOLDEN["colors"], ids=lambda row: f"{row['name']} {row['size'][0]}")
def test_colours_equal_the_originals(row, judge):
    width, height = row["size"]
    mask, box = scenes.blob(width, height)
    with torch.inference_mode():
        picture = Image.fromarray(tiny.picture(width, height))
        colors = judge.colors(picture, ObjectDetection(row["name"], 1.0, box), torch.from_numpy(mask))
    seen = torch.tensor([colors[color] for color in COLORS])
    assert torch.allclose(seen, torch.tensor(row["logits"]).softmax(-1), atol=1e-5)
    assert ObjectDetection(row["name"], 1.0, box, colors).color == row["color"]


def test_pictures_are_preprocessed_as_in_the_detectors_training():
    picture = Image.new("RGB", (100, 60), (255, 0, 51))
    pixels, shown = prepare(picture, 32, [0.5, 0.5, 0.2], [0.5, 0.25, 0.1])
    assert shown == (32, 53) and pixels.shape == (3, 32, 64)  # 53.33 wide, and padding to 64
    assert pixels[:, 31, 52].tolist() == pytest.approx([1, -2, 0], abs=1e-6) and (pixels[..., 53:] == 0).all()
    for size, expected in (
        ((1000, 1000), (800, 800)),
        ((2000, 500), (333, 1333)),
        ((1, 1), (800, 800)),
        ((512, 768), (1200, 800)),
        ((5000, 1), (1, 1333)),
    ):
        pixels, shown = prepare(Image.new("RGB", size), 800, [0] * 3, [1] * 3)
        assert shown == expected and all(side % 32 == 0 for side in pixels.shape[1:])


def test_a_mask_is_resized_to_the_picture_without_the_padding():
    logits = torch.full((8, 16), -5.0)
    logits[:, 14:] = 5.0  # of 64 wide from 56 on: padding alone
    logits[2:4, 4:8] = 5.0
    mask = resize_mask(logits, (32, 64), (32, 53), Image.new("RGB", (106, 64))) > 0
    down, across = torch.where(mask)
    assert mask.shape == (64, 106)
    assert (down.min(), down.max() + 1, across.min(), across.max() + 1) == (16, 32, 32, 64)


@pytest.mark.parametrize(
    "prompt, things, wrong",
    [
        ("a photo of a dog", [("dog", 0.31, (0.25, 0.25, 0.5, 0.5))], []),
        ("a photo of a dog", [("dog", 0.29, (0.25, 0.25, 0.5, 0.5))], ["there is no dog"]),
        ("a photo of a dog", [("cat", 0.99, (0.25, 0.25, 0.5, 0.5))], ["there is no dog"]),
        ("a photo of a dog", [("dog", 0.99, (0.25, 0.25, 0.25, 0.5))], ["there is no dog"]),  # an empty mask
        ("a photo of two dogs", [("dog", 0.91, (0, 0, 0.25, 1)), ("dog", 0.91, (0.5, 0, 1, 1))], []),
        (
            "a photo of two dogs",
            [("dog", 0.91, (0, 0, 0.25, 1)), ("dog", 0.89, (0.5, 0, 1, 1))],
            ["I see 1 dog, 2 were asked for"],
        ),
        ("a photo of two dogs", [("dog", 0.97, (0, 0, 1, 1))] * 20, ["I see 16 dogs, 2 were asked for"]),
        ("a photo of a dog left of a cat", [("dog", 0.5, (0, 0, 0.25, 1)), ("cat", 0.5, (0.5, 0, 1, 1))], []),
        (
            "a photo of a dog above a cat",
            [("dog", 0.5, (0, 0, 0.25, 1)), ("cat", 0.5, (0.5, 0, 1, 1))],
            ["the dog is not above the cat"],
        ),
        (
            "a photo of a blue dog and a blue cat",
            [("dog", 0.5, (0, 0, 0.5, 1)), ("cat", 0.5, (0, 0, 1, 1))],
            [],
        ),
        (
            "a photo of a blue dog and a red cat",
            [("dog", 0.5, (0, 0, 0.5, 1)), ("cat", 0.5, (0, 0, 1, 1))],
            ["the cat is blue, not red"],
        ),
        ("a photo of a red dog", [], ["there is no red dog"]),
    ],
)
def test_verdicts_from_detector_outputs(prompt, things, wrong, told):
    image = pictures(1, 64, 64)
    judge = told(*things)
    (verdict,), (score,) = judge.criticize(image, [prompt]), judge.score(image, [prompt])
    assert list(verdict.faults) == wrong and verdict.satisfied == (not wrong)
    assert verdict.critique == "; ".join(wrong)
    assert 0 <= score <= 1 and (score > 0.5) == (not wrong)
    assert told(*things, of=GenEvalStrict).score(image, [prompt]) == [float(not wrong)]


def test_boxes_are_in_the_pictures_pixels(told):
    """Shown 107 by 64 and padded to 128 by 64: of that a quarter is 32 pixels, of the picture 60."""
    judge = told(("dog", 0.8, (0.25, 0.25, 0.5, 0.5)), ("cat", 0.9, (0.875, 0, 1, 1)))
    ((seen, mask),) = judge.detect(Image.new("RGB", (200, 120)), {"dog", "cat"})  # the cat is padding
    assert seen.name == "dog" and seen.confidence == pytest.approx(0.8, abs=0.01)
    assert seen.box == (60, 30, 120, 60) and mask[32:58, 62:118].all()  # its corners are rounded


def test_only_the_colours_that_matter_are_classified(told, monkeypatch):
    judge, looked = told(*[("dog", 0.5 + i / 10, (0, 0, 1, 1)) for i in range(4)]), []

    def colors(picture, seen, mask):
        looked.append(seen.confidence)
        return dict.fromkeys(COLORS, 0.1)

    monkeypatch.setattr(judge, "colors", colors)
    image = pictures(1, 64, 64)
    for prompt, count in (("a dog", 0), ("a red dog", 1), ("two red dogs", 2), ("a red cat", 0)):
        looked.clear()
        judge.score(image, [prompt])
        assert len(looked) == count and looked == sorted(looked, reverse=True), prompt


PROMPTS = [
    "a photo of a person",
    "a photo of two zebras",
    "a photo of a blue traffic light",
    "a photo of a zebra",
    "a photo of a dining table left of a toilet",
    "a photo of a red toilet and a blue oven",
]


@pytest.mark.parametrize("kind", BOTH)
def test_scores_do_not_depend_on_the_batch(kind, installed):
    judge = kind(device="cpu", side=48)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(16)]
    alone, wide = {}, pictures(16)  # 64 by 40: shown as 77 by 48, padded to 96 by 64
    for i in range(16):
        alone[i] = judge.score(wide[i : i + 1], [prompts[i]])[0]
    # Others in between, of other sizes, and the batch the other way round.
    assert judge.score(wide, prompts) == list(alone.values())
    tall = judge.score(pictures(3, 33, 90), prompts[:3])
    assert judge.score(wide[:3], prompts[:3]) == [alone[i] for i in range(3)]
    assert judge.score(wide.flip(0), prompts[::-1]) == list(alone.values())[::-1]
    assert judge.score(pictures(3, 33, 90), prompts[:3]) == tall
    verdicts = judge.criticize(wide, prompts)
    if kind is GenEval:
        assert len(set(alone.values())) > 8
        assert [v.satisfied for v in verdicts] == [score > 0.5 for score in alone.values()]
    else:
        assert set(alone.values()) == {0.0, 1.0}
        assert [v.satisfied for v in verdicts] == [score == 1 for score in alone.values()]


def test_unusual_pictures_and_prompts_are_scored(judge, told):
    for shape in ((1, 1, 1, 3), (1, 1, 40, 3), (1, 300, 2, 3), (1, 9, 7, 1)):
        (score,) = judge.score(torch.rand(shape), ["a photo of a red person"])
        assert 0 <= score <= 1, shape
    sees = told(("dog", 0.8, (0, 0, 1, 1)))
    assert sees.score(torch.rand(1, 1, 1, 3), ["a photo of a blue dog"])[0] > 0.5
    grey = torch.rand(1, 9, 7, 1)
    assert judge.score(grey, PROMPTS[:1]) == judge.score(grey.expand(-1, -1, -1, 3), PROMPTS[:1])
    with pytest.raises(BadInput, match=r"expected pictures \(B, H, W, 3\)"):
        judge.score(torch.rand(1, 8, 8, 4), PROMPTS[:1])
    with pytest.raises(BadInput, match="picture 1 of 1 .* NaN or infinite"):
        judge.score(torch.full((1, 4, 4, 3), math.nan), PROMPTS[:1])
    for call in (judge.score, judge.criticize):
        with pytest.raises(BadInput, match="got 2 for 1"):
            call(torch.rand(1, 4, 4, 3), PROMPTS[:2])
        with pytest.raises(BadInput, match="a prompt is empty"):
            call(torch.rand(1, 4, 4, 3), [" "])
        with pytest.raises(BadInput, match="'an astronaut on the moon' is no such thing") as error:
            call(torch.rand(1, 4, 4, 3), ["an astronaut on the moon"])
    assert "expects a prompt such as 'a photo of two dogs'" in str(error.value)


def test_metadata_allows_freely_worded_prompts(told, tmp_path):
    line = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "man's best friend"}
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    judge = told(("dog", 0.8, (0, 0, 1, 1)), metadata=path)
    first, second = judge.score(pictures(2), ["man's best friend", "a photo of a dog"])
    assert first == second > 0.5
    with pytest.raises(BadInput, match="'mans best friend' is no such thing"):
        judge.score(pictures(1), ["mans best friend"])


def test_both_judges_are_critics(judge):
    assert isinstance(judge, Critic) and isinstance(judge.model, torch.nn.Module)
    assert [kind.spec.name for kind in BOTH] == ["geneval", "geneval-strict"]
    assert all((kind.spec.low, kind.spec.high, kind.spec.higher_is_better) == (0, 1, True) for kind in BOTH)
    assert not any(p.requires_grad for p in judge.model.parameters()) and not judge.model["detector"].training


def test_the_detector_stays_in_float32_if_clip_is_half(installed):
    full, half = GenEval(device="cpu", side=48), GenEval(device="cpu", side=48, dtype="float16")
    assert {p.dtype for p in half.model["detector"].parameters()} == {torch.float32}
    assert {p.dtype for p in half.model["clip"].parameters()} == {torch.float16}
    image, prompt = pictures(1), ["a photo of a blue zebra"]
    assert half.score(image, prompt) == pytest.approx(full.score(image, prompt), abs=0.02)
    assert {p.dtype for p in half.model["clip"].parameters()} == {torch.float16}
    with pytest.raises(BadInput, match="unknown dtype 'int8'"):
        GenEval(device="cpu", dtype="int8")


def full_size_config():
    """config.json of the published detector, as far as it differs from transformers' defaults."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = {
        "model_type": "swin",
        "depths": [2, 2, 18, 2],
        "num_heads": [3, 6, 12, 24],
        "embed_dim": 96,
        "window_size": 7,
        "image_size": 384,
        "out_features": stages,
    }
    return {
        "model_type": "mask2former",
        "backbone_config": backbone,
        "id2label": {str(i): name for i, name in enumerate(CLASSES)},
    }


def test_the_published_keys_fit_at_full_size(keys, tmp_path):
    """Names and shapes as the published file has them; one number stands for all of a tensor."""
    tensors = {
        name: torch.zeros(1, dtype=torch.long if name.endswith("_index") else None).expand(shape)
        for name, shape in keys["geneval"].items()
    }
    assert len(tensors) == 782
    (tmp_path / "config.json").write_text(json.dumps(full_size_config()))
    model = load_detector(tensors, tmp_path / "config.json", tmp_path / "model.safetensors")
    counted = sum(p.numel() for name, p in model.named_parameters() if not is_unused(name))
    parameters = JUDGES["clip-score"].parameters + counted
    assert all(JUDGES[kind.spec.name].parameters == parameters for kind in BOTH)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert JUDGES["geneval"].files[0].bytes == pytest.approx(stored, rel=0.01)
    del tensors["class_predictor.bias"]
    with pytest.raises(CheckpointError, match=r"1 keys are missing \(class_predictor.bias\)"):
        load_detector(tensors, tmp_path / "config.json", tmp_path / "model.safetensors")


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path):
    right = detector_tensors()
    write_folder(tmp_path, right)
    config, path = tmp_path / "config.json", tmp_path / "model.safetensors"
    assert load_detector(right, config, path)
    lighter = {name: value for name, value in right.items() if name != "criterion.empty_weight"}
    assert load_detector(lighter, config, path)
    key = next(name for name in right if "blocks.0.attention" in name and name.endswith("query.weight"))
    fewer = {name: value for name, value in right.items() if name != key}
    with pytest.raises(CheckpointError, match="tensors is not the Mask2Former that .*config.json") as error:
        load_detector(fewer, config, path)
    assert "1 keys are missing (" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"5 keys are unexpected \(a, b, c, …\)"):
        load_detector(right | {name: torch.zeros(1) for name in "abcde"}, config, path)
    with pytest.raises(CheckpointError, match=r"1 keys are misshapen \(class_predictor.weight\)"):
        load_detector(right | {"class_predictor.weight": torch.zeros(81, 3)}, config, path)


def test_other_files_are_refused(installed, tmp_path):
    own = load_file(installed / FOLDER / "model.safetensors")
    clip = installed / "clip-vit-large-patch14"
    with pytest.raises(CheckpointError, match="keys are missing .* and .* keys are unexpected"):
        write_folder(tmp_path / "a", load_file(clip / "model.safetensors"))
        GenEval(tmp_path / "a", device="cpu")
    with pytest.raises(CheckpointError, match="type 'clip', expected 'mask2former'"):
        GenEval(clip / "model.safetensors", device="cpu")
    with pytest.raises(CheckpointError, match="a detector of 133 classes, expected COCO's 80"):
        write_folder(tmp_path / "b", own, scenes.DETECTOR | {"num_labels": 133})
        GenEval(tmp_path / "b", device="cpu")
    for text in (
        "{}",
        "no json",
        '{"image_mean": [0.5], "image_std": [0.5]}',
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0]}',
    ):
        folder = write_folder(tmp_path / "c", own)
        (folder / "preprocessor_config.json").write_text(text)
        with pytest.raises(CheckpointError, match="preprocessor_config.json .*mean"):
            GenEval(folder, device="cpu")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        GenEval(tmp_path / "d", device="cpu")


def test_the_command_line_scores_and_lists_it(installed, tmp_path, capsys):
    from reprise.backend.cli.main import run

    path = tmp_path / "photo.png"
    Image.fromarray(tiny.picture(33, 20)).save(path)
    words = ["--reward", "geneval", "--reward", "geneval-strict"]
    assert run(["score", str(path), "--prompt", "a photo of a person", *words, "--json"]) == 0
    ((row,),) = [json.loads(capsys.readouterr().out)]
    assert row["scores"]["geneval-strict"] == float(row["scores"]["geneval"] > 0.5)
    assert run(["score", str(path), "--prompt", "a castle at dawn", *words]) == 2
    assert "'a castle at dawn' is no such thing" in capsys.readouterr().err
    assert run(["models", "--json"]) == 0
    judges = {judge["name"]: judge for judge in json.loads(capsys.readouterr().out)["judges"]}
    for name in ("geneval", "geneval-strict"):
        found = judges[name]
        assert found["advice"] is None and found["fits"] in (True, False, None)
        assert len(found["files"]) == 5 and all(file["path"] for file in found["files"])
        assert found["bytes"] == sum(file["bytes"] for file in found["files"])
    (installed / FOLDER / "config.json").rename(tmp_path / "away")
    try:
        assert run(["models"]) == 0
        text = " ".join(capsys.readouterr().out.split())
    finally:
        (tmp_path / "away").rename(installed / FOLDER / "config.json")
    page = f"https://huggingface.co/facebook/{FOLDER}"
    assert "not installed: geneval (" in text and f"put config.json (8 kB) from {page} into " in text
