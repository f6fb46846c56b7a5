"""`reprise score`: every kind of picture file, each scored by itself."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from reprise.backend.cli.score import read_picture
from reprise.backend.core.errors import BadInput
from reprise.backend.shapeworld import drawing
from reprise.backend.shapeworld.prompts import parse_prompt, sample_layout

PROMPT = "a red circle"


@pytest.fixture
def picture():
    return Image.fromarray(drawing.draw(sample_layout(parse_prompt(PROMPT), random.Random(1))))


def test_scores_as_json_and_as_a_table(reprise, picture, tmp_path):
    picture.save(tmp_path / "right.png")
    Image.new("RGB", (64, 40), "white").save(tmp_path / "empty.jpg")
    words = (
        "score",
        "right.png",
        "empty.jpg",
        "--prompt",
        PROMPT,
        "--reward",
        "shapeworld",
        "--reward",
        "shapeworld-strict",
    )
    rows = json.loads(reprise(*words, "--json").out)
    assert [row["image"] for row in rows] == ["right.png", "empty.jpg"]
    assert rows[0]["scores"]["shapeworld-strict"] == 1 and rows[1]["scores"]["shapeworld-strict"] == 0
    assert rows[0]["scores"]["shapeworld"] > 0.9 > 0.5 > rows[1]["scores"]["shapeworld"]
    table = reprise(*words).out
    assert "right.png" in table and f"{rows[0]['scores']['shapeworld']:.4f}" in table


def test_a_pictures_score_does_not_depend_on_the_others(reprise, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    picture.rotate(180).save(tmp_path / "b.png")
    alone = json.loads(reprise("score", "b.png", "--prompt", PROMPT, "--json").out)
    both = json.loads(reprise("score", "a.png", "b.png", "--prompt", PROMPT, "--json").out)
    assert both[1] == alone[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(picture, tmp_path, mode):
    if mode == "I;16":
        converted = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        converted = picture.convert(mode)
    path = tmp_path / ("p.tif" if mode == "CMYK" else "p.png")
    converted.save(path)
    tensor = read_picture(path)
    assert tensor.shape == (128, 128, 3) and tensor.dtype == torch.float32
    assert 0 <= tensor.min() and tensor.max() <= 1 and tensor.std() > 0.02


def test_what_is_transparent_lies_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "p.png")
    assert torch.equal(read_picture(tmp_path / "p.png"), torch.ones(8, 8, 3))


def test_a_cameras_rotation_is_undone(tmp_path):
    picture = Image.new("RGB", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "p.jpg", exif=exif)
    assert read_picture(tmp_path / "p.jpg").shape == (20, 10, 3)


def test_unreadable_pictures_are_one_line(reprise, picture, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "none.png").write_bytes(b"")
    picture.save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "folder").mkdir()
    for name, part in (
        ("text.png", "is not a readable picture"),
        ("none.png", "is not a readable picture"),
        ("cut.png", "damaged"),
        ("missing.png", "there is no picture"),
        ("folder", "got the folder"),
    ):
        result = reprise("score", name, "--prompt", PROMPT)
        assert (
            result.code == 2
            and len(result.err.splitlines()) == 1
            and name in result.err
            and part in result.err
        )
        with pytest.raises(BadInput):
            read_picture(tmp_path / name)


@pytest.mark.parametrize(
    "words,part",
    [
        (["--prompt", PROMPT, "--reward", "shapeword"], "did you mean 'shapeworld'"),
        (["--prompt", PROMPT, "--reward", "length"], "reads rewrites, not pictures"),
        (["--prompt", PROMPT, "--held-out", "shapeword"], "did you mean 'shapeworld'"),
        (["--prompt", PROMPT, "--held-out", "length"], "reads rewrites, not pictures"),
        (
            ["--prompt", PROMPT, "--held-out", "shapeworld"],
            "shapeworld is given as --reward and as --held-out",
        ),
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "a cat"], "name one of its shapes"),
        ([], "--prompt"),
    ],
)
def test_bad_words(reprise, picture, tmp_path, words, part):
    picture.save(tmp_path / "p.png")
    result = reprise("score", "p.png", *words)
    assert (result.code, result.out) == (2, "") and part in result.err and len(result.err.splitlines()) == 1


def test_held_out_rewards_stand_apart(reprise, picture, tmp_path):
    picture.save(tmp_path / "p.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "q.png")
    words = ("score", "p.png", "q.png", "--prompt", PROMPT, "--held-out", "shapeworld-strict")
    rows = json.loads(reprise(*words, "--json").out)
    assert [set(row["scores"]) for row in rows] == [{"shapeworld"}] * 2
    assert [row["held_out"] for row in rows] == [{"shapeworld-strict": 1.0}, {"shapeworld-strict": 0.0}]
    assert "shapeworld-strict (held out)" in reprise(*words).out
    twice = json.loads(reprise(*words, "--held-out", "shapeworld-strict", "--json").out)
    assert twice == rows
    alone = json.loads(reprise("score", "p.png", "--prompt", PROMPT, "--json").out)
    assert alone[0]["scores"] == rows[0]["scores"] and alone[0]["held_out"] == {}
