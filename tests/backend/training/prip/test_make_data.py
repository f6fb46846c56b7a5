"""Logs that are drawn and scored: by names, through the cache, and on the command line."""

import json

import pytest
from PIL import Image

from reprise.backend.cli.main import run
from reprise.backend.core.errors import BadInput, RepriseError, RewardFailed
from reprise.backend.training.prip.make_data import make_log
from reprise.backend.training.rollouts.picture_log import read_log, read_source

from ..world import Blueness, FailsAlways, FailsOnGreen, Redness, WordRenderer

REWARDS = {"redness": Redness(), "blueness": Blueness()}


@pytest.fixture
def renderer():
    return WordRenderer()


def made(path, source, renderer=None, rewards=REWARDS, **options):
    records, judge_prompts = read_source(str(source))
    counts = make_log(path, records, lambda: renderer, rewards, judge_prompts=judge_prompts, **options)
    return counts, read_log(path)


def prompts(path, *lines):
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


def test_prompts_are_drawn_several_times_and_scored(renderer, tmp_path):
    source = prompts(tmp_path / "p.txt", "a red cat", "a blue cat", "a cat")
    counts, records = made(tmp_path / "out/log.jsonl", source, renderer, renders=3)
    assert counts == {
        "file": str(tmp_path / "out/log.jsonl"),
        "prompts": 3,
        "pictures": 9,
        "drawn": 9,
        "not_judged": 0,
    }
    assert [one.prompt for one in records] == ["a red cat"] * 3 + ["a blue cat"] * 3 + ["a cat"] * 3
    assert len({one.picture for one in records}) == 9 and all(one.picture.is_file() for one in records)
    assert all(one.scores["redness"] > 0.8 > 0.3 > one.scores["blueness"] for one in records[:3])
    line = json.loads((tmp_path / "out/log.jsonl").read_text().splitlines()[0])
    assert line.keys() == {"prompt", "image", "scores"} and line["image"].startswith("log.jsonl.pictures/")


def test_another_prompt_may_draw_the_picture(renderer, tmp_path):
    """All that a user's prompt was drawn as shares its seeds; judges read the user's prompt."""
    source = prompts(
        tmp_path / "p.jsonl",
        {"prompt": "a cat", "system": "a cat, red"},
        {"prompt": "a cat"},
        {"prompt": "a dog", "system": "a dog, blue"},
    )
    _, records = made(tmp_path / "log.jsonl", source, renderer, renders=2)
    assert [one.system for one in records] == ["a cat, red"] * 2 + ["a cat"] * 2 + ["a dog, blue"] * 2
    seeds = {job.prompt: [] for job in renderer.calls[0]}
    for job in renderer.calls[0]:
        seeds[job.prompt].append(job.seed)
    assert seeds["a cat, red"] == seeds["a cat"] != seeds["a dog, blue"] and len(set(seeds["a cat"])) == 2


def test_judges_may_read_other_words(renderer, tmp_path):
    read = []

    class Reads(Redness):
        def score(self, images, prompts):
            read.extend(prompts)
            return super().score(images, prompts)

    source = prompts(tmp_path / "p.jsonl", {"prompt": "a cat", "judged_as": "an animal"})
    made(tmp_path / "log.jsonl", source, renderer, {"redness": Reads()}, renders=2)
    assert read == ["an animal"] * 2


def test_a_stopped_call_goes_on_and_draws_nothing_twice(renderer, tmp_path):
    source = prompts(tmp_path / "p.txt", *(f"a red cat {i}" for i in range(4)))

    def stop(done, of):
        assert of == 8
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "log.jsonl", source, renderer, renders=2, at_once=4, progress=stop)
    assert not (tmp_path / "log.jsonl").exists()
    counts, records = made(tmp_path / "log.jsonl", source, renderer, renders=2, at_once=4)
    assert counts["drawn"] == 4 and counts["pictures"] == 8
    assert sum(map(len, renderer.calls)) == 8
    counts, more = made(
        tmp_path / "log.jsonl", prompts(source, "a red cat 0", "a blue cat"), renderer, renders=2
    )
    assert counts["drawn"] == 2 and more[:2] == records[:2]


def test_pictures_that_exist_are_scored(tmp_path):
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8 if name == "a" else 12, 8), color).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {color} thing")
    calls = []

    class Counts(Redness):
        def score(self, images, prompts):
            calls.append(tuple(images.shape))
            return super().score(images, prompts)

    rewards = {"redness": Counts()}
    counts, records = made(tmp_path / "out" / "log.jsonl", tmp_path, rewards=rewards)
    assert counts["pictures"] == 2 and counts["drawn"] == 0
    assert [one.scores for one in records] == [{"redness": 1.0}, {"redness": 0.0}]
    assert [one.picture.resolve() for one in records] == [tmp_path / "a.png", tmp_path / "b.png"]
    made(tmp_path / "out" / "log.jsonl", tmp_path, rewards=rewards)
    assert calls == [(1, 8, 8, 3), (1, 8, 12, 3)]
    # A log's own scores stay, and others come to them.
    _, both = made(
        tmp_path / "out" / "more.jsonl", tmp_path / "out" / "log.jsonl", rewards={"blueness": Blueness()}
    )
    assert [one.scores for one in both] == [
        {"redness": 1.0, "blueness": 0.0},
        {"redness": 0.0, "blueness": 1.0},
    ]


def test_judges_that_fail(renderer, tmp_path):
    source = prompts(tmp_path / "p.txt", "a red cat", "a green cat")
    counts, records = made(
        tmp_path / "log.jsonl", source, renderer, {"fails-on-green": FailsOnGreen()}, renders=1
    )
    assert counts["not_judged"] == 1 and [bool(one.scores) for one in records] == [True, False]
    with pytest.raises(RewardFailed, match="scored none of 2 pictures"):
        made(tmp_path / "other.jsonl", source, renderer, {"fails-always": FailsAlways()}, renders=1)
    assert not (tmp_path / "other.jsonl").exists()
    with pytest.raises(RewardFailed, match="the judge is down|scored none"):
        made(tmp_path / "third.jsonl", tmp_path / "log.jsonl", rewards={"fails-always": FailsAlways()})


def test_a_full_disk_while_pictures_are_written(renderer, tmp_path, monkeypatch):
    monkeypatch.setattr("reprise.backend.storage.cache.Cache._write", lambda *given: None)
    with pytest.raises(RepriseError, match="is not there: the disk is full"):
        made(tmp_path / "log.jsonl", prompts(tmp_path / "p.txt", "a cat"), renderer, renders=1)


def test_a_missing_picture(tmp_path):
    source = prompts(tmp_path / "l.jsonl", {"prompt": "a", "image": "none.png"})
    with pytest.raises(BadInput, match="there is no picture .*none.png; take its line out"):
        made(tmp_path / "log.jsonl", source)


def test_the_command(tmp_path, capsys):
    source, out = prompts(tmp_path / "p.txt", "a red cat", "a cat"), tmp_path / "log.jsonl"
    command = [
        "data",
        "pictures",
        str(source),
        "--out",
        str(out),
        "--renderer",
        "words",
        "--reward",
        "redness",
    ]
    assert run([*command, "--renders", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 4 == len(read_log(out))
    assert run([*command, "--renders", "2"]) == 0
    assert "4 pictures of 2 prompts, 0 drawn now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.txt"], "cannot read the prompts"),
        (["p.txt", "--renders", "0"], "1 to 256"),
        (["p.txt", "--renderer", "wordz"], "did you mean 'words'"),
        (["p.txt", "--reward", "redness=2"], "give the weights to the training"),
        (["p.txt", "--renderer", "words"], "say what scores"),
        (["p.txt", "--out", "p.txt"], "are both p.txt"),
        (["p.txt", "--out", "drawn.jsonl"], "drawn.jsonl was not made by this command"),
        (["p.txt", "--out", "x" * 250], "File name too long"),
        (["p.txt", "--out", ""], "empty name"),
        (["drawn.jsonl", "--renderer", "words", "--reward", "redness"], "is drawn already"),
        (["drawn.jsonl"], "say what scores"),
        (["p.txt", "--seed", "-1"], "--seed must be"),
        (["bad.jsonl"], "line 1: image: extra|line 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words, message, tmp_path, capsys, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    prompts(tmp_path / "p.txt", "a cat")
    prompts(tmp_path / "drawn.jsonl", {"prompt": "a", "image": "a.png"})
    prompts(tmp_path / "bad.jsonl", {"prompt": "a", "image": 3})
    before = sorted(tmp_path.iterdir())
    assert run(["data", "pictures", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(message, said) and "\n" not in said
    assert sorted(tmp_path.iterdir()) == before
