"""The folder of `reprise render`: what is finished stays, what is damaged is drawn again, and no more."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from .rendering import FAST, one_line


def pictures(folder):
    """The pictures and the record of one prompt, by name."""
    found = [folder / "best.png", folder / "record.json", *folder.glob("candidates/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_what_is_finished_is_kept_and_what_is_replaced_is_kept_aside(reprise, drawn, tmp_path):
    words = ("render", "a red circle", *FAST, "--out", "o", "--json")
    first = reprise(*words)
    made = pictures(tmp_path / "o")
    again = reprise(*words)
    assert again.out == first.out and "kept: a red circle" in again.err  # seconds and all
    other = reprise(*words, "--seed", 2)
    assert "kept: " not in other.err and json.loads(other.out)["candidates"][0]["seed"] == 2
    assert "o was drawn with other settings: seed" in other.err
    assert "what was there is kept in o/replaced-1" in other.err
    assert pictures(tmp_path / "o" / "replaced-1") == made
    redone = reprise(*words, "--seed", 2, "--redo")
    assert "kept: " not in redone.err and "is kept in o/replaced-2" in redone.err
    named = {c["image"] for c in json.loads(redone.out)["candidates"] if c["image"]}
    assert {f"candidates/{p.name}" for p in (tmp_path / "o" / "candidates").iterdir()} == named


def test_what_is_damaged_is_drawn_again_and_said(reprise, drawn, tmp_path):
    words = ("render", "a red circle", "a blue star", *FAST, "--reflect", 0, "--prune", "none", "--out", "o")
    assert reprise(*words).code == 0
    [folder] = (tmp_path / "o").glob("a-red-circle-*")
    made = pictures(folder)
    picture = folder / "candidates" / "01-1.png"
    picture.write_bytes(picture.read_bytes()[:1000])
    again = reprise(*words)
    assert again.code == 0 and again.err.count("kept: ") == 1
    assert "1 of 4 pictures in" in again.err and "gone or damaged, first candidates/01-1.png" in again.err
    now = pictures(folder)
    assert {**now, "record.json": b""} == {**made, "record.json": b""}, "the same pictures as before"
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, "best": 99}))
    again = reprise(*words)
    assert again.code == 0 and "the best is candidate 99, which is not there" in again.err
    assert json.loads((folder / "record.json").read_text())["best"] == record["best"]


@pytest.mark.parametrize("name", ["index.html", "best.png", "record.json", "candidates"])
def test_files_of_the_users_own_are_refused_by_name(reprise, drawn, tmp_path, name):
    (tmp_path / "o").mkdir()
    mine = tmp_path / "o" / name
    mine.write_text("mine")
    one_line(
        reprise("render", "a red circle", *FAST, "--out", "o"), 2, f"o/{name} was not made by this command"
    )
    assert mine.read_text() == "mine" and list((tmp_path / "o").iterdir()) == [mine]


def test_files_that_were_put_into_a_run_are_refused_by_name(reprise, drawn, tmp_path):
    words = ("render", "a red circle", *FAST, "--out", "o")
    assert reprise(*words).code == 0
    page = (tmp_path / "o" / "index.html").read_text(encoding="utf-8")
    (tmp_path / "o" / "index.html").write_text("my notes")
    one_line(reprise(*words), 2, "o/index.html was not made by this command, or was changed since")
    assert (tmp_path / "o" / "index.html").read_text() == "my notes"
    (tmp_path / "o" / "index.html").write_text(page, encoding="utf-8")
    Image.new("RGB", (4, 4)).save(tmp_path / "o" / "best.png")
    mine = (tmp_path / "o" / "best.png").read_bytes()
    one_line(reprise(*words, "--redo"), 2, "o/best.png was not made by this program")
    assert (tmp_path / "o" / "best.png").read_bytes() == mine
    one_line(reprise("evaluate", "shapeworld", "--out", "o"), 2, "o holds what `reprise render` made")


def test_a_folder_that_another_process_writes_is_refused(reprise, drawn, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HELD, str(tmp_path / "o")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        refused = reprise("render", "a red circle", *FAST, "--out", "o")
        other.kill()
    one_line(refused, 2, f"o is being written by process {other.pid} on ", "since ", "another --out")
    assert reprise("render", "a red circle", *FAST, "--out", "o").code == 0


HELD = """
import sys, time
from pathlib import Path
from reprise.backend.storage.outputs import claim
with claim(Path(sys.argv[1]), "render"):
    print("held", flush=True)
    time.sleep(100)
"""
