"""What is at a place to write to already: of others, of another call, or being written by another process."""

import json
import subprocess
import sys

import pytest

from reprise.backend.cli import results
from reprise.backend.evaluation.shapeworld import _journal_path

HELD = """
import sys, time
from pathlib import Path
from reprise.backend.storage.outputs import claim
with claim(Path(sys.argv[1]), "a test"):
    print("held", flush=True)
    time.sleep(100)
"""
JUDGE = ("data", "judge", "p.txt", "--renderer", "fake", "--out", "o")
PICTURES = ("data", "pictures", "p.txt", "--renderer", "fake", "--out", "o")
REWRITES = ("data", "rewrites", "p.txt", "--rewriter", "reprompt", "--out", "o")
USERS = ("data", "users", "--per-task", "1", "--each", "1", "--out", "o")
DRAW = ("shapeworld", "draw", "2", "--out", "o")
MEASURE = ("evaluate", "shapeworld", "--out", "o")
COMPARE = ("evaluate", "rewriters", "a=none", "--out", "o")
TRAIN = ("train", "sft", "shapeworld", "--out", "o")


def refused(result, *parts):
    assert (result.code, result.out) == (2, ""), result.err
    assert len(result.err.splitlines()) == 1, result.err
    assert all(part in result.err for part in parts), result.err


@pytest.fixture(autouse=True)
def prompts(reprise, tmp_path):
    (tmp_path / "p.txt").write_text("a red circle\n")


@pytest.mark.parametrize(
    "words,name",
    [
        (JUDGE, "o"),
        (JUDGE, "o.rollouts.json"),
        (PICTURES, "o"),
        (REWRITES, "o"),
        ((*REWRITES, "--eval-share", "0.5", "--eval-out", "e"), "e"),
        (USERS, "o"),
        ((*USERS, "--drawn"), "o.pictures/000000.png"),
        (DRAW, "o/001.png"),
        (DRAW, "o/scenes.json"),
        (MEASURE, "o/result.json"),
        (MEASURE, "o/index.html"),
        (COMPARE, "o/pictures"),
        (COMPARE, "o/scores.jsonl"),
        (TRAIN, "o/final"),
        (TRAIN, "o/metrics.jsonl"),
    ],
)
def test_files_of_the_users_own_are_refused_by_name(reprise, tmp_path, words, name):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    refused(reprise(*words), f"{name} ", "move it, or give another --out")
    assert mine.read_text() == "mine"
    assert not list(tmp_path.rglob(".reprise"))


@pytest.mark.parametrize("words", [JUDGE, PICTURES, REWRITES, DRAW, MEASURE, COMPARE, TRAIN])
def test_a_second_process_is_refused(reprise, tmp_path, words):
    folder = {"data": "o.pictures"}.get(words[0], "o") if words[1] != "rewrites" else "o.answers"
    with subprocess.Popen(
        [sys.executable, "-c", HELD, str(tmp_path / folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        result = reprise(*words)
        other.kill()
    refused(result, f"{folder} is being written by process {other.pid} on ", "since ")


@pytest.mark.parametrize("words", [JUDGE, PICTURES, REWRITES, USERS, DRAW, MEASURE, COMPARE, TRAIN])
def test_no_name_is_no_place(reprise, tmp_path, words):
    refused(reprise(*words[:-1], ""), "got an empty name")
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]


@pytest.mark.parametrize("words", [JUDGE, PICTURES, REWRITES, USERS, DRAW, MEASURE, COMPARE, TRAIN])
def test_a_name_that_is_too_long(reprise, tmp_path, words):
    refused(reprise(*words[:-1], "x" * 300), "File name too long")
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]


def test_other_scenes_are_kept_aside(reprise, tmp_path):
    first = reprise(*DRAW, "--json").out
    before = (tmp_path / "o" / "001.png").read_bytes()
    assert reprise(*DRAW, "--json").out == first
    other = reprise(*DRAW, "--json", "--seed", 1)
    assert other.code == 0 and other.out != first and "are kept in o/replaced-1" in other.err
    assert (tmp_path / "o" / "replaced-1" / "001.png").read_bytes() == before
    assert (tmp_path / "o" / "replaced-1" / "scenes.json").read_text() == first


def test_another_result_is_kept_aside(tmp_path, capsys):
    def result(mean):
        row = {"name": "a", "overall": [mean, 0.1, 0.9], "tasks": {}, "cost": {}}
        return {"name": "shapeworld", "rows": [row], "settings": {}}

    for mean in (0.5, 0.5, 0.6):
        with results.claimed("evaluate shapeworld", tmp_path / "o") as folder:
            results.finish(result(mean), folder, as_json=True)
    assert "another result was there; it is kept in" in capsys.readouterr().err
    assert json.loads((tmp_path / "o" / "result.json").read_text())["rows"][0]["overall"][0] == 0.6
    aside = tmp_path / "o" / "replaced-1"
    assert json.loads((aside / "result.json").read_text())["rows"][0]["overall"][0] == 0.5
    assert (aside / "index.html").is_file() and not (tmp_path / "o" / "replaced-2").exists()


def test_measurements_of_other_settings_are_kept_aside(tmp_path):
    lines = _journal_path(tmp_path, {"seed": 0})
    lines.write_text("{}\n")
    assert _journal_path(tmp_path, {"seed": 0}).read_text() == "{}\n"
    assert not _journal_path(tmp_path, {"seed": 1}).exists()
    assert (tmp_path / "replaced-1" / "partial.jsonl").read_text() == "{}\n"
    assert json.loads((tmp_path / "replaced-1" / "partial-settings.json").read_text()) == {"seed": 0}


def test_a_page_of_pairs_replaces_only_a_page_of_this_store(reprise, tmp_path):
    (tmp_path / "t.csv").write_text("image,prompt,score\np0.png,a,0\np1.png,a,1\n")
    from PIL import Image

    for number in range(2):
        Image.new("RGB", (8, 8), (number * 99, 0, 0)).save(tmp_path / f"p{number}.png")
    assert reprise("preferences", "import", "t.csv", "--store", "s").code == 0
    for out in ("s/pairs.html", "mine.html"):
        for _ in range(2):
            assert reprise("preferences", "page", "--store", "s", "--out", out).code == 0
        (tmp_path / out).write_text("mine")
        refused(reprise("preferences", "page", "--store", "s", "--out", out), f"{out} was not made by")
        assert (tmp_path / out).read_text() == "mine"
