import json

import pytest
from PIL import Image

from reprise.backend.core.errors import BadInput
from reprise.backend.preferences.pairing import PairMiner
from reprise.backend.preferences.store import Store
from reprise.backend.preferences.table import read_table


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        Image.new("RGB", (8, 8), (ord(name), 0, 0)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_a_csv_table_gives_a_group_for_each_prompt(folder):
    table = folder / "scores.csv"
    table.write_text(
        'image,prompt,score,seed\na.png,"a cat, sitting",0.2,7\nb.png,"a cat, sitting",0.9,\n'
        "c.png,a dog,1,3\n",
        encoding="utf-8-sig",
    )
    cats, dogs = read_table(table, "taste")
    assert (
        cats.prompt == "a cat, sitting"
        and cats.reward == "taste"
        and cats.higher_is_better
        and cats.score_range == 1.0
    )
    assert [(one.seed, one.score, one.drawn_as) for one in cats.pictures] == [
        (7, 0.2, "a cat, sitting"),
        (None, 0.9, "a cat, sitting"),
    ]
    assert cats.rank(cats.pictures)[0].load()[0, 0, 0] == pytest.approx(ord("b") / 255)
    assert dogs.source == "table" and dogs.run == str(table)


def test_a_folder_must_hold_one_table(folder):
    (folder / "scores.csv").write_text("image,prompt,score\na.png,a cat,1\nb.png,a cat,0\n")
    [group] = read_table(folder, "taste")
    assert len(group.pictures) == 2 and group.run == str(folder / "scores.csv")
    (folder / "more.jsonl").write_text("")
    with pytest.raises(BadInput, match="it has more.jsonl, scores.csv: name one"):
        next(read_table(folder, "taste"))
    (folder / "empty").mkdir()
    with pytest.raises(BadInput, match="one table, .csv or .jsonl, in .*empty; it has none"):
        next(read_table(folder / "empty", "taste"))


def test_json_lines_with_a_known_reward_use_its_range(folder):
    table = folder / "scores.jsonl"
    rows = [
        {"image": "a.png", "prompt": "a cat", "score": 21.0, "drawn_as": "a large cat"},
        {"image": "b.png", "prompt": "a cat", "score": 19.5},
    ]
    table.write_text("\n\n".join(map(json.dumps, rows)))
    [group] = read_table(table, "pick-score")
    assert group.margin(21.0, 19.5) == pytest.approx(0.3), "parts of its range, 19 to 24"
    assert [one.drawn_as for one in group.pictures] == ["a large cat", "a cat"]
    [lower] = read_table(table, "loss", lower_is_better=True)
    assert lower.rank(lower.pictures)[0].score == 19.5
    with pytest.raises(BadInput, match="of 'pick-score' are better; leave --lower-is-better out"):
        next(read_table(table, "pick-score", lower_is_better=True))


def test_a_picture_with_several_scores_counts_once(folder):
    """With the mean of its scores, also where a copy of it has another name; it is never its own opposite."""
    Image.open(folder / "a.png").save(folder / "copy.png", compress_level=0)
    (folder / "t.csv").write_text(
        "image,prompt,score\na.png,a cat,0.1\ncopy.png,a cat,0.9\nb.png,a cat,0.3\n"
        "c.png,a dog,0\nc.png,a dog,1\n"
    )
    found = PairMiner(Store(folder / "store", create=True), most=2)
    for group in read_table(folder / "t.csv", "taste"):
        found.add_group(group)
    [pair] = found.pairs
    assert (pair.chosen.score, pair.rejected.score) == (pytest.approx(0.5), 0.3)
    assert pair.chosen.scores == {"taste": pytest.approx(0.5)} and found.counts["alone"] == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "names no pictures"),
        ("t.csv", "image,prompt,score\n", "names no pictures"),
        ("t.csv", "image,prompt\na.png,a cat\n", "line 2: score: field required"),
        ("t.csv", "image,prompt,score\na.png,a cat,good\n", "line 2: score: .*'good'"),
        ("t.csv", "image,prompt,score\na.png,a cat,nan\n", "line 2: score: "),
        ("t.csv", "image,prompt,score,mood\na.png,a cat,1,fine\n", "line 2: mood: "),
        ("t.csv", "image,prompt,score\na.png,a cat,1,2\n", "line 2: None: "),
        ("t.csv", "image,prompt,score\nz.png,a cat,1\n", "line 2: no picture .*z.png"),
        ("t.csv", "image,prompt,score\na.png,a cat,1\nt.csv,a cat,2\n", "line 3: .*t.csv is not a readable"),
        (
            "t.csv",
            'image,prompt,score\na.png,a cat,1\n"b.png,a cat,1\n' + "x\n" * 70_000,
            "line 3: no CSV .*; is a quote left open",
        ),
        ("t.jsonl", "\n" + "[" * 200_000, "line 2: not JSON"),
        ("t.jsonl", '{"image": "a.png"', "line 1: not JSON"),
        ("t.jsonl", "[1]", "line 1: "),
        ("t.jsonl", '{"image": "a.png", "prompt": " ", "score": 1}', "line 1: prompt: "),
    ],
)
def test_bad_tables_are_refused_with_their_line(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        list(read_table(folder / name, "score"))
    assert "\n" not in str(caught.value)


def test_a_missing_table_or_one_that_is_not_text_is_refused(folder):
    with pytest.raises(BadInput, match="cannot read"):
        list(read_table(folder / "none.csv", "score"))
    (folder / "t.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not UTF-8"):
        list(read_table(folder / "t.csv", "score"))
