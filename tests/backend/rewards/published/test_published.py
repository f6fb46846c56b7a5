"""The learned judges against the reference implementations' own numbers, at tiny random size."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reprise.backend.core.errors import BadInput, CheckpointError
from reprise.backend.core.registry import REWARDS, resolve
from reprise.backend.rewards.published import clip, image_reward
from reprise.backend.rewards.published.checkpoint import fill
from reprise.backend.rewards.published.files import JUDGES
from reprise.backend.rewards.published.hps import HPSv2, HPSv21
from reprise.backend.rewards.published.image_reward import ImageReward
from reprise.backend.rewards.published.preprocess import MEAN, STD, center_crop, pad_to_square

from ....data.rewards import tiny

REFERENCE = {  # judge -> where its reference's scores are
    "image-reward": ("image_reward", "scores"),
    "hps-v2.1": ("hps", "scores"),
    "hps-v2": ("hps", "scores"),
    "pick-score": ("pick_score", "scores"),
    "clip-score": ("openai_clip", "clip"),
    "aesthetic": ("openai_clip", "aesthetic"),
}
NAMES = list(REFERENCE)
WORDS = "a red circle on the grey background"


def make(name, **options):
    return resolve("reward", REWARDS, name)(device="cpu", **options)


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_references(name, installed, pictures, golden):
    judge, (of, which) = make(name), REFERENCE[name]
    spread = set()
    for size, image in pictures.items():
        want = golden[of][which][size]
        got = judge.score(image.expand(len(want), -1, -1, -1), tiny.PROMPTS)
        assert got == pytest.approx(want, abs=1e-4), size
        spread |= {round(value, 3) for value in want}
    assert len(spread) >= len(pictures)  # or the comparison would say little


@pytest.mark.parametrize("size", [f"{w}x{h}" for w, h in tiny.SIZES])
def test_pixels_equal_the_references(size, golden_pixels):
    picture = Image.fromarray(tiny.picture(*map(int, size.split("x"))))
    seen = {
        "image_reward": center_crop(picture, 224),
        "openai_clip": center_crop(picture, 224),
        "hps": pad_to_square(picture, 224),
        "pick_score": center_crop(picture, 224, floor=True),
    }
    for name, pixels in seen.items():
        assert pixels.shape == (3, 224, 224)
        difference = (pixels[:, ::9, ::9] - golden_pixels[f"{name}/{size}"]).abs().max()
        assert difference < 1e-5, name


def test_the_two_roundings_of_a_crop_differ():
    picture = Image.fromarray(tiny.picture(333, 517))
    assert (center_crop(picture, 224) - center_crop(picture, 224, floor=True)).abs().max() > 0.5


def test_tokens_equal_the_references(golden, installed):
    want = torch.tensor(golden["hps"]["ids"])
    assert (want == torch.tensor(golden["openai_clip"]["ids"])).all()
    for text, row, expected in zip(tiny.TEXTS, clip.tokens(tiny.TEXTS), want, strict=True):
        assert row.tolist() == expected.tolist(), text
    for text, row, expected in zip(
        tiny.TEXTS, clip.tokens(tiny.TEXTS, clean=False), golden["pick_score"]["ids"], strict=True
    ):
        assert row.tolist() == expected + [0] * (77 - len(expected)), text
    codec = image_reward.bert_tokenizer(installed / "image-reward" / "vocab.txt", len(tiny.BERT_WORDS) + 2)
    for text, row, expected in zip(tiny.TEXTS, codec.encode_batch(tiny.TEXTS), golden["image_reward"]["ids"]):
        assert row.ids == expected, text


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_the_batch(name, installed):
    images = torch.stack([torch.from_numpy(tiny.picture(64, 40)).roll(i, 1) for i in range(16)]) / 255
    prompts = [f"{WORDS} {'again ' * (i % 3)}" for i in range(16)]
    judge = make(name, batch_size=5)
    together = judge.score(images, prompts)
    three = judge.score(images[:3], prompts[:3])
    alone = [judge.score(images[i : i + 1], prompts[i : i + 1])[0] for i in range(16)]
    assert together == pytest.approx(alone, abs=2e-5) and three == pytest.approx(alone[:3], abs=2e-5)
    assert len(set(together)) > 8 and all(map(math.isfinite, together))


@pytest.mark.parametrize("name", NAMES)
def test_unusual_pictures_and_prompts_are_scored(name, installed):
    judge = make(name)
    for shape in ((1, 1, 1, 3), (1, 1, 40, 3), (1, 5000, 2, 3), (1, 9, 7, 1)):
        (score,) = judge.score(torch.rand(shape), [WORDS])
        assert math.isfinite(score) and score != 0, shape
    grey = torch.rand(1, 9, 7, 1)
    assert judge.score(grey, [WORDS]) == judge.score(grey.expand(-1, -1, -1, 3), [WORDS])
    outside = torch.tensor([[[[-1.0, 0.5, 2.0]]]])
    assert judge.score(outside, [WORDS]) == judge.score(outside.clamp(0, 1), [WORDS])
    for bad in (torch.rand(1, 8, 8, 4), torch.rand(8, 8, 3), torch.rand(1, 0, 8, 3)):
        with pytest.raises(BadInput, match=r"expected pictures \(B, H, W, 3\)"):
            judge.score(bad, [WORDS] * len(bad))
    with pytest.raises(BadInput, match="picture 2 of 2 .* NaN or infinite"):
        judge.score(torch.tensor([0.0, float("nan")]).view(2, 1, 1, 1).expand(-1, 4, 4, 3), [WORDS] * 2)
    with pytest.raises(BadInput, match="got 2 for 1"):
        judge.score(torch.rand(1, 4, 4, 3), [WORDS] * 2)
    if name == "aesthetic":
        assert judge.score(torch.ones(1, 4, 4, 3), [""]) == judge.score(torch.ones(1, 4, 4, 3), [WORDS])
    else:
        with pytest.raises(BadInput, match=f"{name} compares .* a prompt is empty"):
            judge.score(torch.rand(1, 4, 4, 3), [" "])


def test_a_very_long_strip_is_resized_the_same_way():
    """Beyond 16 to 1 only what the crop keeps is resized; Pillow then rounds and clips in another order."""
    picture = Image.fromarray(tiny.picture(40, 620)).resize((40, 650))
    whole = picture.resize((224, int(224 * 650 / 40)), Image.Resampling.BICUBIC)
    top = round((whole.height - 224) / 2)
    kept = torch.from_numpy(np.array(whole.crop((0, top, 224, top + 224)))).float()
    seen = center_crop(picture, 224)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    back = (seen.permute(1, 2, 0) * std + mean) * 255
    assert (back - kept).abs().mean() < 0.5  # of 255 levels


def test_a_model_loaded_in_inference_mode_can_be_used_outside(installed, pictures):
    """As a host may: ComfyUI runs its nodes in inference mode, other programs load there alone."""
    image = pictures["640x480"]
    with torch.inference_mode():
        judge = make("clip-score", dtype="float16")
        inside = judge.score(image, [WORDS])
    assert judge.score(image, [WORDS]) == inside
    assert {p.dtype for p in judge.model.parameters()} == {torch.float16}


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_used_if_requested(name, installed, pictures):
    image = pictures["640x480"]
    full, half = make(name), make(name, dtype="bfloat16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    (a,), (b,) = full.score(image, [WORDS]), half.score(image, [WORDS])
    assert b == pytest.approx(a, rel=0.1, abs=0.1)
    assert not any(p.requires_grad for p in full.model.parameters()) and not full.model.training
    with pytest.raises(BadInput, match="unknown dtype 'int8'"):
        make(name, dtype="int8")


@pytest.mark.parametrize("name, entries, millions", [("image-reward", 625, 446.67), ("hps", 686, 986.1)])
def test_the_published_keys_fit_at_full_size(name, entries, millions, keys):
    """Names and shapes as the references have them; no memory is used."""
    tensors = {key: torch.empty(shape, device="meta") for key, shape in keys[name].items()}
    assert len(tensors) == entries
    assert sum(t.numel() for t in tensors.values()) / 1e6 == pytest.approx(millions, abs=0.02)
    for judge in (ImageReward,) if name == "image-reward" else (HPSv21, HPSv2):
        model = judge.load(tensors, "the file", torch.device("meta"), None)
        ours = sum(p.numel() for p in model.parameters())
        assert ours == JUDGES[judge.spec.name].parameters


def test_full_size_clip_l_and_the_aesthetic_head():
    """Counted from openai/clip-vit-large-patch14's published sizes."""
    import transformers

    from reprise.backend.rewards.published.aesthetic import Aesthetic

    config = transformers.CLIPConfig(
        projection_dim=768,
        text_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
        },
        vision_config={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
        },
    )
    with torch.device("meta"):
        both, aesthetic = transformers.CLIPModel(config), Aesthetic.build(config)
    assert sum(p.numel() for p in both.parameters()) == JUDGES["clip-score"].parameters
    assert sum(p.numel() for p in aesthetic.parameters()) == JUDGES["aesthetic"].parameters


@pytest.mark.parametrize(
    "name, other",
    [
        ("image-reward", "hps-v2.1/HPS_v2.1_compressed.pt"),
        ("hps-v2.1", "image-reward/ImageReward.pt"),
        ("aesthetic", "image-reward/ImageReward.pt"),
        ("pick-score", "clip-vit-large-patch14/model.safetensors"),
    ],
)
def test_another_judges_file_is_refused_by_name(name, other, installed, tmp_path):
    with pytest.raises(CheckpointError) as error:
        make(name, path=installed / other)
    assert str((installed / other).parent) in str(error.value) and " is not " in str(error.value)
    if name != "pick-score":  # there the keys are the same and the sizes are not
        assert "keys are missing (" in str(error.value) and "keys are unexpected (" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_unexpected_and_misshapen_keys_are_named(golden):
    shapes = golden["image_reward"]["shapes"]
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}

    def load(changed):
        return fill(
            lambda: torch.nn.Linear(2, 3),
            changed,
            lambda name: (f"x.{name}", lambda t: t),
            lambda key: key == "extra",
            description="a line",
            path="f.pt",
            device=torch.device("meta"),
            dtype=None,
        )

    right = {"x.weight": torch.empty(3, 2), "x.bias": torch.empty(3), "extra": torch.empty(1)}
    assert sum(p.numel() for p in load(right).parameters()) == 9
    with pytest.raises(CheckpointError, match=r"1 keys are missing \(x.bias\)"):
        load({"x.weight": torch.empty(3, 2)})
    with pytest.raises(CheckpointError, match=r"5 keys are unexpected \(a, b, c, …\)"):
        load(right | {key: torch.empty(1) for key in "abcde"})
    with pytest.raises(CheckpointError, match=r"x.weight gives \(2, 2\), expected \(3, 2\)"):
        load(right | {"x.weight": torch.empty(2, 2)})
    assert "blip.text_proj.weight" in tensors and image_reward.unused("blip.text_proj.weight")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused(content, suffix, installed, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="weights"):
        make("hps-v2.1", path=path)


def test_a_file_that_could_run_code_is_not_loaded(installed, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Harmful()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="bad.pt holds more than weights"):
        make("image-reward", path=tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


def test_files_in_the_format_before_torch_1_6_load(installed, tmp_path, golden):
    from ..conftest import tensors

    path = tmp_path / "ImageReward.pt"
    torch.save(tensors(golden["image_reward"]["shapes"]), path, _use_new_zipfile_serialization=False)
    old = make("image-reward", path=path)
    image = torch.rand(1, 30, 30, 3)
    assert old.score(image, [WORDS]) == make("image-reward").score(image, [WORDS])


def test_another_vocabulary_or_config_is_refused(installed, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (tmp_path / "ImageReward.pt").write_bytes((installed / "image-reward" / "ImageReward.pt").read_bytes())
    with pytest.raises(CheckpointError, match="not bert-base-uncased's vocab.txt: it has 2 lines"):
        make("image-reward", path=tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="type 'siglip', expected 'clip'"):
        make("pick-score", path=tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_scores_picture_files(name, installed, tmp_path, capsys):
    """Grey, 16-bit grey, see-through, palette and one-pixel pictures, by the command line."""
    from reprise.backend.cli.main import run

    colour = Image.fromarray(tiny.picture(33, 20))
    made = {
        "grey.png": colour.convert("L"),
        "deep.png": colour.convert("L").convert("I;16"),
        "clear.png": Image.new("RGBA", (20, 20), (255, 0, 0, 0)),
        "white.png": Image.new("RGB", (20, 20), "white"),
        "palette.gif": colour.convert("P"),
        "pixel.png": colour.crop((5, 5, 6, 6)),
        "photo.jpg": colour,
    }
    for file, picture in made.items():
        picture.save(tmp_path / file)
    paths = [str(tmp_path / file) for file in made]
    code = run(["score", *paths, "--prompt", WORDS, "--reward", name, "--json"])
    scores = {Path(row["image"]).name: row["scores"][name] for row in json.loads(capsys.readouterr().out)}
    assert code == 0 and all(math.isfinite(score) and score != 0 for score in scores.values())
    assert scores["clear.png"] == scores["white.png"]
    assert run(["score", str(tmp_path / "grey.png"), "--prompt", " ", "--reward", name]) == 2


def test_models_lists_judges_with_their_files(installed, capsys):
    from reprise.backend.cli.main import run

    (installed / "hps-v2" / "HPS_v2_compressed.pt").rename(installed / "gone")
    try:
        assert run(["models", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        judges = {judge["name"]: judge for judge in found["judges"]}
        assert run(["models"]) == 0
        text = capsys.readouterr().out
    finally:
        (installed / "gone").rename(installed / "hps-v2" / "HPS_v2_compressed.pt")
    assert list(judges) == list(JUDGES)
    assert all(judge["fits"] in (True, False, None) for judge in judges.values())
    assert judges["image-reward"]["advice"] is None and judges["image-reward"]["files"][0]["path"]
    lost = judges["hps-v2"]
    assert "put HPS_v2_compressed.pt (1.97 GB)" in lost["advice"] and lost["files"][0]["path"] is None
    own = {model["name"] for model in found["models"] if model["kind"] == "judges"}
    assert own == {"embedded", "embedded-base"}, "published ones are listed by themselves"
    assert "not installed: hps-v2 (" in text and "image-reward" in text and "986.11 M" in text
