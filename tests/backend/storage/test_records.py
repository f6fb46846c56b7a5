"""Records and files: complete, valid, and one clear line if something cannot be written."""

import errno
import hashlib
import json
import os

import pytest
import torch
from PIL import Image

from reprise.backend.core.errors import BadInput, RepriseError
from reprise.backend.core.types import Candidate, Cost, Outcome, ReflectionRound, Rewrite
from reprise.backend.storage import files, records

SETTINGS = {"renderer": "fake", "best_of": 3, "steps": 8, "rewards": {}}


def an_outcome(score=0.9):
    image = torch.linspace(0, 1, 8 * 8 * 3).reshape(8, 8, 3)
    candidates = [
        Candidate(0, 5, "one", {"shapeworld": 0.2}, 0.2, None, image.flip(0), {2: 0.1, 4: 0.3}),
        Candidate(1, 6, "one", {"shapeworld": score}, score, None, image, {2: 0.4, 4: 0.5}),
        Candidate(2, 7, "two", pruned_at=2, preview_scores={2: 0.05}, round=1),
    ]
    cost = Cost(20, 24, 6, {"render": 1.0, "total": 1.5})
    rewrites = [Rewrite("because", "one", "test"), Rewrite("", "two", "test", "the answer has no <prompt>")]
    return Outcome(
        "a prompt", rewrites, candidates, 1, [ReflectionRound(0, "no", "too red", "one", score, 1)], cost
    )


def test_the_record_has_its_documented_form(tmp_path):
    records.save_outcome(tmp_path, an_outcome(), SETTINGS, {"reprise": "0"})
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert set(record) == {
        "prompt",
        "rewrites",
        "candidates",
        "best",
        "reflection",
        "cost",
        "settings",
        "versions",
    }
    assert record["rewrites"][1] == {
        "reason": "",
        "prompt": "two",
        "rewriter": "test",
        "fallback": "the answer has no <prompt>",
    }
    assert record["candidates"][1] == {
        "index": 1,
        "seed": 6,
        "prompt": "one",
        "scores": {"shapeworld": 0.9},
        "score": 0.9,
        "pruned_at": None,
        "image": "candidates/01-6.png",
        "preview": None,
        "sha256": hashlib.sha256((tmp_path / "candidates" / "01-6.png").read_bytes()).hexdigest(),
        "round": 0,
        "preview_scores": {"2": 0.4, "4": 0.5},
        "preview_clarity": {},
    }
    pruned = record["candidates"][2]
    assert (pruned["image"], pruned["score"], pruned["pruned_at"], pruned["round"]) == (None, None, 2, 1)
    assert pruned["preview"] is None, "it has no preview picture"
    assert record["best"] == 1 and record["reflection"][0]["critique"] == "too red"
    assert record["cost"]["denoiser_rows"] == 20 and record["cost"]["seconds"]["total"] == 1.5


def test_pictures_carry_their_prompt_and_seed(tmp_path):
    outcome = an_outcome()
    records.save_outcome(tmp_path, outcome, SETTINGS, {})
    with Image.open(tmp_path / "candidates" / "01-6.png") as picture:
        info = json.loads(picture.info["reprise"])
        assert (info["prompt"], info["user_prompt"], info["seed"]) == ("one", "a prompt", 6)
        wanted = outcome.candidates[1].image.mul(255).round().byte().flatten().tolist()
        assert list(picture.tobytes()) == wanted
    assert (tmp_path / "best.png").read_bytes() == (tmp_path / "candidates" / "01-6.png").read_bytes()


def test_the_last_preview_of_a_pruned_candidate_is_saved(tmp_path):
    outcome = an_outcome()
    outcome.candidates[2].preview = torch.rand(8, 8, 3)
    record = records.save_outcome(tmp_path, outcome, SETTINGS, {})
    assert record.candidates[2].preview == "previews/02-7.png" and record.candidates[2].image is None
    assert sorted(p.name for p in (tmp_path / "candidates").iterdir()) == ["00-5.png", "01-6.png"]
    with Image.open(tmp_path / "previews" / "02-7.png") as picture:
        info = json.loads(picture.info["reprise"])
        assert (info["prompt"], info["seed"], info["pruned_at"]) == ("two", 7, 2)
        wanted = outcome.candidates[2].preview.mul(255).round().byte().flatten().tolist()
        assert list(picture.tobytes()) == wanted
    assert records.load_record(tmp_path / "record.json") == record
    said = []
    records.save_outcome(tmp_path, an_outcome(), SETTINGS, {}, said.append)
    assert not (tmp_path / "previews").exists(), "those of the earlier run are moved aside"
    assert records.load_record(tmp_path / "replaced-1" / "record.json") == record
    assert (tmp_path / "replaced-1" / "previews" / "02-7.png").is_file() and "replaced-1" in said[0]


def test_records_that_were_moved_aside_are_not_found(tmp_path):
    for _ in range(2):
        records.save_outcome(tmp_path / "a", an_outcome(), SETTINGS, {})
    assert records.find_records(tmp_path) == [tmp_path / "a" / "record.json"]
    aside = tmp_path / "a" / "replaced-1"
    assert records.find_records(aside) == [aside / "record.json"], "unless they are asked for"


def test_a_run_without_its_previews_is_finished(tmp_path):
    outcome = an_outcome()
    outcome.candidates[2].preview = torch.rand(8, 8, 3)
    records.save_outcome(tmp_path, outcome, SETTINGS, {})
    (tmp_path / "previews" / "02-7.png").unlink()
    assert records.finished_record(tmp_path, "a prompt", SETTINGS) is not None


def test_a_finished_record_has_the_same_prompt_settings_and_all_pictures(tmp_path):
    records.save_outcome(tmp_path, an_outcome(), SETTINGS, {})
    assert records.finished_record(tmp_path, "a prompt", dict(SETTINGS)).winner.seed == 6
    assert records.finished_record(tmp_path, "another", SETTINGS) is None
    assert records.finished_record(tmp_path, "a prompt", {**SETTINGS, "best_of": 4}) is None
    (tmp_path / "candidates" / "00-5.png").unlink()
    assert records.finished_record(tmp_path, "a prompt", SETTINGS) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"prompt": "a"}', '{"prompt": NaN}', "[" * 100_000, "\xff"])
def test_a_damaged_record_is_not_read(tmp_path, text):
    (tmp_path / "record.json").write_bytes(text.encode("latin-1"))
    said = []
    assert records.finished_record(tmp_path, "a", {}, said.append) is None
    assert len(said) == 1 and said[0].startswith("drawn again: ")
    with pytest.raises(BadInput, match="not a record of this program"):
        records.load_record(tmp_path / "record.json")


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda record: record.update(best=7), "the best is candidate 7, which is not there"),
        (lambda record: record.update(candidates=[]), "the best is candidate 1, which is not there"),
        (lambda record: record["candidates"][0].update(index=1), "two candidates have the same index"),
        (lambda record: record["candidates"][0].update(image="../a.png"), "candidates.0.image"),
        (lambda record: record["candidates"][0].update(image="/etc/a.png"), "candidates.0.image"),
        (lambda record: record["candidates"][0].update(image="candidates/.."), "candidates.0.image"),
        (lambda record: record["candidates"][0].update(image="candidates/a\\..\\b"), "candidates.0.image"),
        (lambda record: record["candidates"][0].update(preview="previews/a/../../b"), "candidates.0.preview"),
        (lambda record: record["candidates"][0].update(preview="previews/a\0"), "candidates.0.preview"),
    ],
)
def test_a_record_that_contradicts_itself_or_leads_out_of_its_folder_is_not_read(tmp_path, change, message):
    records.save_outcome(tmp_path, an_outcome(), SETTINGS, {})
    record = json.loads((tmp_path / "record.json").read_text())
    change(record)
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match=message):
        records.load_record(tmp_path / "record.json")
    assert records.finished_record(tmp_path, "a prompt", SETTINGS) is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "gone"])
@pytest.mark.parametrize("summed", [True, False])
def test_a_run_with_a_damaged_picture_is_not_finished(tmp_path, damage, summed):
    records.save_outcome(tmp_path, an_outcome(), SETTINGS, {})
    if not summed:  # a record from elsewhere may have no checksums
        text = (tmp_path / "record.json").read_text()
        found = json.loads(text)
        for one in found["candidates"]:
            del one["sha256"]
        (tmp_path / "record.json").write_text(json.dumps(found))
    picture = tmp_path / "candidates" / "00-5.png"
    data = picture.read_bytes()
    middle = data.index(b"IDAT") + 20
    picture.write_bytes(
        {
            "truncated": data[:middle],
            "empty": b"",
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "gone": b"",
        }[damage]
    )
    if damage == "gone":
        picture.unlink()
    said = []
    assert records.finished_record(tmp_path, "a prompt", SETTINGS, said.append) is None
    assert "1 of 2 pictures" in said[0] and "gone or damaged, first candidates/00-5.png" in said[0]


@pytest.mark.parametrize("damage", [None, b"", b"half"])
def test_a_damaged_best_picture_is_copied_again(tmp_path, damage):
    records.save_outcome(tmp_path, an_outcome(), SETTINGS, {})
    best, said = tmp_path / "best.png", []
    best.unlink() if damage is None else best.write_bytes(damage)
    assert records.finished_record(tmp_path, "a prompt", SETTINGS, said.append) is not None
    assert best.read_bytes() == (tmp_path / "candidates" / "01-6.png").read_bytes()
    assert "copied again from candidates/01-6.png" in said[0]


def test_pictures_of_others_are_refused_before_anything_is_drawn(tmp_path):
    records.save_outcome(tmp_path, an_outcome(), SETTINGS, {})
    records.check_folder(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "best.png")
    with pytest.raises(BadInput, match="best.png was not made by this program"):
        records.check_folder(tmp_path)
    (tmp_path / "best.png").unlink()
    (tmp_path / "record.json").unlink()
    records.check_folder(tmp_path)  # as a kill leaves it
    Image.new("RGB", (4, 4)).save(tmp_path / "candidates" / "02-7.png")
    with pytest.raises(BadInput, match="02-7.png was not made by this program"):
        records.check_folder(tmp_path)


def test_prompts_of_the_same_name_get_folders_of_their_own(tmp_path, monkeypatch):
    """As when their hashes were the same; found again by their records, in whatever order they come."""
    monkeypatch.setattr(records, "slug", lambda prompt: "same")
    prompts = ["a", "b", "c"]
    folders = records.prompt_folders(tmp_path, prompts)
    assert [folders[prompt].name for prompt in prompts] == ["same", "same-2", "same-3"]
    for prompt in prompts:
        outcome = an_outcome()
        outcome.prompt = prompt
        records.save_outcome(folders[prompt], outcome, SETTINGS, {})
    assert records.prompt_folders(tmp_path, prompts[::-1]) == folders
    assert records.prompt_folders(tmp_path, ["b"]) == {"b": folders["b"]}
    assert records.prompt_folders(tmp_path, ["d", "b"])["d"].name == "same-4"
    (folders["a"] / "record.json").unlink()  # as a kill leaves it
    assert records.prompt_folders(tmp_path, ["c", "b", "a"]) == folders
    assert records.prompt_folders(tmp_path, ["c", "e", "b", "a"])["e"] == folders["a"]


def test_of_10_000_prompts_that_begin_alike_none_share_a_folder(tmp_path):
    prompts = [f"a very long prompt about a red circle on a blue ground, number {i}" for i in range(10_000)]
    found = records.prompt_folders(tmp_path, prompts)
    assert len(set(found.values())) == 10_000
    assert not any(folder.name.endswith("-2") for folder in found.values())


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_makes_no_record(tmp_path, score):
    with pytest.raises(RepriseError, match="not valid"):
        records.save_outcome(tmp_path, an_outcome(score), SETTINGS, {})
    assert not (tmp_path / "record.json").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.txt"
    files.write_whole(path, "old")

    def fails(handle):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(RepriseError):
        files.write_whole(path, "new")
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_full_disk_is_one_line_and_exit_code_1(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RepriseError, match="the disk is full.*finished prompts are kept") as caught:
        files.write_whole(tmp_path / "a", b"x")
    assert caught.value.exit_code == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="--out"):
        files.prepare_folder(tmp_path / place)


def test_slugs_are_folder_names_and_differ():
    assert files.slug("Three RED circles!").startswith("three-red-circles-")
    assert files.slug("a b") != files.slug("a-b") and files.slug("a", salt="1") != files.slug("a", salt="2")
    assert files.slug("赤い円").isalnum() and len(files.slug("x" * 500)) < 60
    assert "/" not in files.slug("../../etc/passwd")


def test_versions_name_what_the_pixels_depend_on():
    found = records.installed_versions()
    assert found["threads"] == str(torch.get_num_threads())
    assert found["torch"].startswith(torch.__version__.split("+")[0]) and {"reprise", "python"} <= set(found)
