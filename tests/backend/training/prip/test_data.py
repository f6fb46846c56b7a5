"""Logs of prompts and pictures in three layouts, what is chosen from them, and pivots kept on disk."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from reprise.backend.core.errors import BadInput, CheckpointError, TrainingFailed
from reprise.backend.storage.images import read_picture
from reprise.backend.training.prip import pivots as prip_pivots
from reprise.backend.training.prip.data import drawn_records, preferred_records, well_scored
from reprise.backend.training.prip.pivots import Pivots, fingerprint, variation
from reprise.backend.training.rollouts.picture_log import LoggedPicture, read_log

from ...rewriters.prip.tiny_prip import image as tower


def quiet(line):
    pass


def picture(path, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), color).save(path)
    return path


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def record(prompt, system="", **scores):
    return LoggedPicture(prompt, system or prompt, None, scores)


def test_three_layouts_give_the_same_log(tmp_path):
    one, two = picture(tmp_path / "db/part-000001/a.png"), picture(tmp_path / "db/part-000002/b.webp", "blue")
    entries = {"a.png": {"p": "a  red\nthing", "se": 3}, "gone.png": {"p": " "}}
    (one.parent / "part-000001.json").write_text(json.dumps(entries))
    (two.parent / "part-000002.json").write_text(json.dumps({"b.webp": {"p": "a blue thing"}}))
    expected = [
        LoggedPicture("a red thing", "a red thing", one, {}),
        LoggedPicture("a blue thing", "a blue thing", two, {}),
    ]
    assert read_log(tmp_path / "db") == expected
    assert read_log(tmp_path / "db/part-000001") == expected[:1]

    one, two = picture(tmp_path / "captions/a.png"), picture(tmp_path / "captions/more/b.jpg", "blue")
    one.with_suffix(".txt").write_text("a red thing\n")
    two.with_suffix(".txt").write_text("a blue thing")
    picture(tmp_path / "captions/without.png")
    found = read_log(tmp_path / "captions")
    assert [(r.prompt, r.system, r.image) for r in found] == [
        ("a red thing", "a red thing", one),
        ("a blue thing", "a blue thing", two),
    ]

    log = lines(
        tmp_path / "captions/log.jsonl",
        {"prompt": "a", "system": "b", "image": "a.png"},
        "",
        {"prompt": "c", "image": "more/b.jpg", "scores": {"x": 2}},
        {"prompt": "d"},
    )
    assert read_log(log) == [
        LoggedPicture("a", "b", one, {}),
        LoggedPicture("c", "c", two, {"x": 2.0}),
        LoggedPicture("d", "d", None, {}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no log lines; `reprise data pictures` makes one"),
        ("\n\n", "holds no log lines"),
        ('{"prompt": "a"', "line 1: not JSON"),
        ('{"prompt": "a"}\n{"prompt": "a", "picture": "b"}', "line 2: picture: extra"),
        ('{"prompt": " "}', "line 1: prompt"),
        ('{"prompt": "a", "scores": {"x": NaN}}', "line 1: scores.x"),
        ("[1]", "line 1"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_malformed_logs(text, message, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=message):
        read_log(path)


def test_folders_without_logs(tmp_path):
    with pytest.raises(BadInput, match="holds no log"):
        read_log(tmp_path)
    with pytest.raises(BadInput, match="cannot read the log .*data pictures` makes one"):
        read_log(tmp_path / "none.jsonl")
    for text in ("[]", '{"a.png": {"prompt": "x"}}', "{"):
        (tmp_path / "part-000001.json").write_text(text)
        with pytest.raises(BadInput, match="no part of DiffusionDB"):
            read_log(tmp_path)


def test_missing_pictures(tmp_path):
    rows = [{"prompt": f"p{i}", "image": picture(tmp_path / f"{i}.png").name} for i in range(10)]
    log, said = lines(tmp_path / "log.jsonl", *rows), []
    (tmp_path / "3.png").unlink()
    assert len(drawn_records(log, said.append)) == 9 and "left out 1 of 10" in said[0]
    (tmp_path / "4.png").unlink()
    with pytest.raises(BadInput, match="2 of 10 of the pictures of .* are gone; bring"):
        drawn_records(log, quiet)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(BadInput, match="10 of 10"):
        drawn_records(log, quiet)
    with pytest.raises(BadInput, match="1 of 2 lines of .* have no image yet; `reprise data pictures"):
        drawn_records(lines(log, {"prompt": "a"}, rows[0]), quiet)


def test_the_preferred_picture():
    records = [
        record("a", "a1", shapeworld=0.2, other=9.0),
        record("a", "a2", shapeworld=0.6, other=0.0),
        record("b", "b1", shapeworld=0.5, other=0.0),
        record("a", "a3", shapeworld=0.6, other=0.0),
    ]

    def chosen(rewards, how="best", seed=0):
        return [one.system for one in preferred_records(records, rewards, how, seed, quiet)]

    assert chosen({"shapeworld": 1.0}) == ["a2", "b1"]  # of a tie the first
    assert chosen({"shapeworld": 1.0, "other": 1.0}) == ["a1", "b1"]
    assert chosen({"shapeworld": 30.0, "other": 1.0}) == ["a2", "b1"]
    several = {tuple(chosen({}, "random", seed)) for seed in range(20)}
    assert several == {("a1", "b1"), ("a2", "b1"), ("a3", "b1")}
    assert chosen({}, "random", 3) == chosen({}, "random", 3)
    with pytest.raises(BadInput, match="no scores of 'aesthetic', only of other, shapeworld; add them"):
        chosen({"aesthetic": 1.0})


def test_rewards_where_less_is_better(monkeypatch):
    from reprise.backend.core.types import RewardSpec
    from reprise.backend.training.prip import data as prip_data

    monkeypatch.setattr(
        prip_data, "reward_spec", lambda name: RewardSpec(name, 0.0, 10.0, higher_is_better=False)
    )
    found = preferred_records(
        [record("a", "bad", x=9.0), record("a", "good", x=1.0)], {"x": 1.0}, "best", 0, quiet
    )
    assert [one.system for one in found] == ["good"]


def test_prompts_without_a_scored_picture_are_left_out():
    records, said = [record(f"p{i}", x=1.0) for i in range(10)], []
    assert len(preferred_records([*records, record("q")], {"x": 1.0}, "best", 0, said.append)) == 10
    assert "left out 1 of 11 of the prompts" in said[0]
    with pytest.raises(BadInput, match="2 of 3 of the prompts have no scored"):
        preferred_records([records[0], record("q"), record("r")], {"x": 1.0}, "best", 0, quiet)


def test_pictures_that_score_well():
    records = [record("a", clip=0.3, look=6.0), record("b", clip=0.2, look=6.0), record("c", look=7.0)]
    assert [one.prompt for one in well_scored(records, {"clip": 0.28, "look": 5.2})] == ["a"]
    assert well_scored(records, {}) == records
    with pytest.raises(BadInput, match="no picture has 0.5 of 'clip', at most 0.3"):
        well_scored(records, {"clip": 0.5})
    with pytest.raises(BadInput, match="no scores of 'x'"):
        well_scored(records, {"x": 0.5})


# Pivots


@pytest.fixture(scope="module")
def eye():
    return tower()


@pytest.fixture
def files(tmp_path):
    """Five pictures of several sizes."""
    found = []
    for i in range(5):
        pixels = torch.rand(24 + 8 * i, 32, 3, generator=torch.Generator().manual_seed(i))
        found.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels.mul(255).byte().numpy()).save(found[-1])
    return found


def test_pivots_are_made_once(eye, files, tmp_path, monkeypatch):
    kept, said = tmp_path / "pivots", []
    monkeypatch.setattr(prip_pivots, "SHARD", 2)
    monkeypatch.setattr(prip_pivots, "AT_ONCE", 2)
    pivots = Pivots(kept, eye)
    assert pivots.prepare([*files, files[0]], said.append) == set() and said == [
        "making the pivots of 5 pictures"
    ]
    assert len(list(kept.glob("*.safetensors"))) == 3
    with torch.no_grad():
        expected = torch.cat([eye(read_picture(path)[None]) for path in files])
    torch.testing.assert_close(pivots.of(files), expected, rtol=1e-3, atol=2e-3)  # one by one, in float16
    mean, std = pivots.statistics(files)
    torch.testing.assert_close(mean, pivots.of(files).mean(0))
    torch.testing.assert_close(std, pivots.of(files).std(0, correction=0))

    again = Pivots(kept, eye)
    monkeypatch.setattr(type(eye), "embed", None)
    assert again.prepare(files, said.append) == set() and len(said) == 1
    assert torch.equal(again.of(files[::-1]), pivots.of(files).flip(0))


def test_stopped_pivots_go_on_in_the_same_batches(eye, files, tmp_path, monkeypatch):
    monkeypatch.setattr(prip_pivots, "SHARD", 2)
    monkeypatch.setattr(prip_pivots, "AT_ONCE", 2)
    whole = Pivots(tmp_path / "whole", eye)
    whole.prepare(files, quiet)
    embed, calls = type(eye).embed, []

    def stopped(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(self, pixels)

    monkeypatch.setattr(type(eye), "embed", stopped)
    with pytest.raises(KeyboardInterrupt):
        Pivots(tmp_path / "stopped", eye).prepare(files, quiet)
    after = Pivots(tmp_path / "stopped", eye)
    after.prepare(files, quiet)
    assert calls == [2, 2, 2, 1] and torch.equal(after.of(files), whole.of(files))


def test_another_tower_or_picture_is_another_entry(eye, files, tmp_path):
    pivots = Pivots(tmp_path / "p", eye)
    pivots.prepare(files, quiet)
    other = tower()
    with torch.no_grad():
        other.queries.weight.add_(1)
    assert fingerprint(other) != fingerprint(eye) == fingerprint(tower())
    said = []
    Pivots(tmp_path / "p", other).prepare(files, said.append)
    Image.new("RGB", (9, 9)).save(files[0])
    pivots.prepare(files, said.append)
    assert said == ["making the pivots of 5 pictures", "making the pivots of 1 pictures"]


def test_damaged_pictures_and_files(eye, files, tmp_path, monkeypatch):
    files[1].write_bytes(b"no picture")
    files[2].write_bytes(files[2].read_bytes()[:60])
    pivots = Pivots(tmp_path / "p", eye)
    assert pivots.prepare(files, quiet) == {files[1], files[2]}
    (shard,) = (tmp_path / "p").glob("*.safetensors")
    with safe_open(shard, "pt") as file:
        assert len(list(file.keys())) == 3
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="is damaged .* delete it"):
        Pivots(tmp_path / "p", eye)

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(TrainingFailed, match="no space left to write .*make room"):
        Pivots(tmp_path / "q", eye).prepare(files, quiet)


def test_how_much_pivots_vary():
    mean = torch.ones(2, 3)
    assert variation(mean, torch.zeros(2, 3)) == 0
    assert variation(mean, torch.full((2, 3), 0.1)) == pytest.approx(0.1 / 1.01**0.5)
    assert variation(torch.zeros(2, 3), torch.full((2, 3), 0.1)) == pytest.approx(1)
