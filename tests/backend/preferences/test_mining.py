import json

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.core.types import RewardSpec
from reprise.backend.preferences.mining import read_runs
from reprise.backend.preferences.pairing import PairMiner, PictureGroup, ScoredPicture
from reprise.backend.preferences.store import Store
from reprise.backend.storage.cache import Cache
from reprise.backend.storage.records import RECORD

from .conftest import picture


@pytest.fixture
def rounds(tmp_path):
    """(rows, rewards) -> a run folder of rounds of a renderer."""

    def make(rows, rewards=None):
        run = tmp_path / "rounds"
        (run / "rounds" / "1").mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (run / "rounds" / "1" / "rollouts.jsonl").write_text("".join(line + "\n" for line in lines))
        settings = {"model": "fake", "rounds": {"rewards": rewards or {"shapeworld": 1.0}}}
        (run / "config.yaml").write_text(json.dumps(settings))
        cache = Cache(run / "rollouts" / "pictures")
        for i, key in enumerate(("aa", "bb")):
            cache.put_image(key, picture(i))
        return run

    return make


ROW = {
    "prompt": "a cat",
    "judged_as": "felis",
    "seeds": [0, 1],
    "pictures": ["aa", "bb"],
    "scores": [{"shapeworld": 0.9}, {"shapeworld": 0.1}],
}


@pytest.fixture
def mined(tmp_path):
    """(path, reward, **options) -> what was mined of it; `notes` are what was said."""

    def mine(path, reward=None, **options):
        found = PairMiner(Store(tmp_path / "store", create=True), **options)
        found.notes = []
        for group in read_runs(path, reward, found.notes.append):
            found.add_group(group)
        return found

    return mine


def seeds(found):
    return [(pair.condition, pair.chosen.seed, pair.rejected.seed) for pair in found.pairs]


CANDIDATES = [("large", 0.3), ("low", 0.9), ("large", 0.8), ("low", 0.1), ("large", None), ("large", 0.4)]


def test_best_against_worst_of_the_same_words(render, mined):
    folder = render("a cat", CANDIDATES)
    found = mined(folder)
    assert seeds(found) == [("large", 12, 10), ("low", 11, 13)]
    first = found.pairs[0]
    assert (first.prompt, first.reward, first.source) == ("a cat", "shapeworld", "render")
    assert first.run == str(folder)
    assert first.margin == pytest.approx(0.5) and first.renderer == "fake"
    assert first.chosen.scores == {"shapeworld": 0.8} and first.chosen.drawn_as == "large"
    image = found.store.image(first.rejected.image)
    assert (image - picture(500)).abs().max() < 1e-6


def test_best_against_worst_of_the_users_words(render, mined):
    found = mined(render("a cat", CANDIDATES), by="prompt", most=2)
    assert seeds(found) == [("a cat", 11, 13), ("a cat", 12, 10)]
    assert [side.drawn_as for side in (found.pairs[0].chosen, found.pairs[1].chosen)] == ["low", "large"]


def test_ties_are_dropped_by_their_margin(render, mined):
    folder = render("a cat", [("x", 0.50), ("x", 0.54), ("y", 0.5), ("y", 0.5), ("z", 0.5), ("z", 0.7)])
    assert seeds(mined(folder)) == [("z", 15, 14)]
    assert mined(folder).counts["ties"] == 2
    assert len(seeds(mined(folder, margin=0.0))) == 2, "equal scores are a tie whatever the margin"
    assert not seeds(mined(folder, margin=0.3))


def test_another_reward_and_its_range(render, mined):
    other = [{"image-reward": value} for value in (1.5, -0.5)]
    folder = render("a cat", [("x", 0.2), ("x", 0.9)], scores=other)
    found = mined(folder, "image-reward")
    assert seeds(found) == [("x", 10, 11)]
    assert found.pairs[0].margin == pytest.approx(0.5), "2 of its range of 4"
    with pytest.raises(BadInput, match="image-reward, shapeworld"):
        mined(folder, "pick-score")


def test_a_mix_and_a_judge_that_counts_downwards(render, mined):
    folder = render("a cat", [("x", 0.2), ("x", 0.9)], judge="remote:x@y", rewards={"image-reward": 1.0})
    assert mined(folder).pairs[0].reward == "remote:x@y+image-reward"
    record = json.loads((folder / RECORD).read_text())
    record["best"] = 0
    (folder / RECORD).write_text(json.dumps(record))
    assert seeds(mined(folder)) == [("x", 10, 11)], "what was selected says which way it counts"


@pytest.mark.parametrize("asked", ["vlm:embedded", "vlm:embedded#critique", "vlm:runs/embedded/final"])
@pytest.mark.parametrize("stored", ["vlm:embedded", "vlm:embedded#critique"])
def test_a_judge_has_one_name(render, mined, asked, stored):
    """That of its scores, however it was named, and whatever else it could do."""
    folder = render("a cat", [("x", 0.2), ("x", 0.9)], scores=[{stored: 0.2}, {stored: 0.9}], judge=asked)
    record = json.loads((folder / RECORD).read_text())
    for candidate in record["candidates"]:
        del candidate["scores"]["shapeworld"]
    (folder / RECORD).write_text(json.dumps(record))
    [pair] = mined(folder).pairs
    assert (pair.reward, pair.chosen.scores) == ("vlm:embedded", {"vlm:embedded": 0.9})
    for name in ("vlm:embedded", "vlm:embedded#critique"):
        assert mined(folder, name).pairs == [pair]


def test_rewrites_are_compared_by_their_means(render, mined):
    assert not mined(render("a cat", CANDIDATES)).rewrites, "of both the mean is .5"
    [texts] = mined(render("a dog", [("large", 0.9), ("low", 0.2), ("large", 0.7), ("low", None)])).rewrites
    assert (texts.chosen.rewrite, texts.chosen.pictures) == ("large", 2)
    assert texts.chosen.reason == "Why large." and texts.chosen.score == pytest.approx(0.8)
    assert (texts.rejected.rewrite, texts.rejected.score) == ("low", 0.2)


def test_pictures_that_are_gone_or_damaged_make_no_pair(render, mined):
    folder = render("a cat", CANDIDATES)
    (folder / "candidates" / "02-12.png").unlink()
    (folder / "candidates" / "03-13.png").write_bytes(b"\x89PNG half")
    found = mined(folder)
    assert not found.pairs and found.counts["gone"] == 2


def test_rollouts(training, mined):
    run = training(
        [
            {
                "prompt": "a cat",
                "judged_as": "felis",
                "rewrites": [("a large cat", [0.9, 0.2]), ("a cat, low", [0.1, 0.3]), ("a cat", [0.5, 0.6])],
            },
            {"prompt": "a dog", "rewrites": [("a large dog", [0.5, 0.5])]},
        ]
    )
    found = mined(run)
    assert seeds(found) == [("a large cat", 0, 1), ("a cat, low", 1, 0), ("a cat", 1, 0)]
    assert found.counts["ties"] == 1
    pair = found.pairs[0]
    assert (pair.source, pair.reward) == ("training", "shapeworld")
    assert (pair.renderer, pair.prompt) == ("fake", "felis"), "what the judge compared with"
    assert seeds(mined(run, by="prompt")) == [("felis", 0, 0)]
    [texts] = found.rewrites
    assert texts.prompt == "a cat", "what the rewriter was given"
    assert (texts.chosen.rewrite, texts.rejected.rewrite) == ("a large cat", "a cat, low")
    assert texts.chosen.pictures == 2 and texts.margin == pytest.approx(0.35)


def test_rounds_of_a_renderer(rounds, mined):
    [pair] = mined(rounds([ROW])).pairs
    assert (pair.prompt, pair.condition, pair.renderer) == ("felis", "a cat", "fake")
    assert (pair.chosen.seed, pair.rejected.seed) == (0, 1)


@pytest.mark.parametrize(
    "row",
    [
        "{",
        "[1]",
        "7",
        {**ROW, "scores": [{"shapeworld": "x"}] * 2},
        {**ROW, "seeds": ["x", "y"]},
        {**ROW, "prompt": 3, "judged_as": None},
        {"prompt": "a cat"},
        {**ROW, "scores": [[0.9], [0.1]]},
        {**ROW, "scores": [{"shapeworld": float("nan")}] * 2},
    ],
)
def test_a_damaged_round_is_named(rounds, mined, row):
    with pytest.raises(BadInput, match=r"1/rollouts.jsonl is damaged \(\w+: .*\); bring it back") as caught:
        mined(rounds([ROW, row]))
    assert "\n" not in str(caught.value)


def test_damaged_settings_and_records_are_named(rounds, render, training, mined):
    run = rounds([ROW], ["shapeworld"])
    with pytest.raises(BadInput, match="rounds/config.yaml is damaged"):
        mined(run)
    folder = render("a cat", CANDIDATES, rewards=[["a"], ["b"]])
    with pytest.raises(BadInput, match="record.json is damaged"):
        mined(folder)
    run = training([{"prompt": "a dog", "rewrites": [("x", [0.9, 0.1])]}])
    file = run / "rollouts" / "rollouts.jsonl"
    file.write_bytes(file.read_bytes() + b"\xff\n")
    with pytest.raises(BadInput, match="rollouts.jsonl is damaged .UnicodeDecodeError"):
        mined(run)


def test_what_is_not_known_of_a_reward_is_said(rounds, render, mined):
    """A served reward counts as ours of its name does; of others higher is better, which is said."""
    scores = [{"remote:x@http://h": 1.0}, {"remote:x@http://h": 2.0}]
    found = mined(rounds([{**ROW, "scores": scores}], {"remote:x@http://h": 1.0}))
    assert seeds(found) == [("a cat", 1, 0)] and len(found.notes) == 1
    assert "which way remote:x@http://h counts is not on record; higher was taken" in found.notes[0]
    for name in ("remote:image-reward@http://h", "vlm:x"):
        found = mined(rounds([{**ROW, "scores": [{name: 1.0}, {name: 2.0}]}], {name: 1.0}))
        assert seeds(found) == [("a cat", 1, 0)] and not found.notes
    assert (
        mined(
            rounds(
                [
                    {
                        **ROW,
                        "scores": [
                            {"remote:image-reward@http://h": 1.0},
                            {"remote:image-reward@http://h": 2.0},
                        ],
                    }
                ],
                {"remote:image-reward@http://h": 1.0},
            )
        )
        .pairs[0]
        .margin
        == 0.25
    )
    folder = render("a cat", [("x", 0.2), ("x", 0.9)], scores=[{"y": 2.0, "z": 0.2}, {"y": 1.0, "z": 0.9}])
    found = mined(folder, "y")
    assert seeds(found) == [("x", 10, 11)] and "which way y counts" in found.notes[0]
    assert not mined(folder, "z").notes, "it selected"


def test_rollouts_whose_scores_are_gone(training, mined):
    run = training([{"prompt": "a cat", "rewrites": [("x", [0.9]), ("y", [0.1])]}])
    for path in (run / "rollouts" / "pictures").rglob("*.json"):
        path.unlink()
    assert seeds(mined(run, by="prompt")) == [("a cat", 0, 0)], "one picture: the row has its score"
    with pytest.raises(BadInput, match="it has those of shapeworld, structure"):
        mined(run, "pick-score")
    with pytest.raises(BadInput, match="looks at pictures"):
        mined(training([], {"structure": 1.0}, "other"))


def test_a_trainings_own_mix(training, mined):
    """Best by all its rewards of pictures, each brought to 0..1 by its range, where they disagree."""
    run = training(
        [{"prompt": "a cat", "rewrites": [("x", [0.5, 0.9, 0.4])]}],
        {"structure": 0.5, "shapeworld": 1.0, "image-reward": 3.0},
    )
    for path in (run / "rollouts" / "pictures").rglob("*.json"):
        entry = json.loads(path.read_text())
        score = entry["scores"]["shapeworld"]
        entry["scores"]["image-reward"] = {0.5: 2.0, 0.9: 0.0, 0.4: -2.0}[score]
        path.write_text(json.dumps(entry))
    [pair] = mined(run).pairs
    assert (pair.reward, pair.chosen.seed, pair.rejected.seed) == ("shapeworld+image-reward", 0, 2)
    assert pair.chosen.score == pytest.approx((0.5 + 3 * 1.0) / 4)
    assert pair.rejected.score == pytest.approx((0.4 + 3 * 0.0) / 4)
    assert seeds(mined(run, "shapeworld")) == [("x", 1, 2)]


def test_another_store(render, mined, tmp_path):
    own = mined(render("a cat", [("large", 0.9), ("low", 0.2), ("large", 0.7), ("low", 0.1)]), margin=0.0)
    own.store.add(own.pairs), own.store.add_rewrites(own.rewrites)
    assert len(own.pairs) == 2 and len(own.rewrites) == 1
    own.store.strike([own.pairs[0].id])
    other = PairMiner(Store(tmp_path / "other", create=True), margin=0.0)
    other.copy_pairs(own.store)
    assert other.pairs == own.pairs[1:] and other.rewrites == own.rewrites
    for side in (other.pairs[0].chosen, other.pairs[0].rejected):
        assert other.store.image(side.image).equal(own.store.image(side.image))
    for margin, reward, found in ((0.5, None, 1), (0.0, "x", 0)):
        some = PairMiner(Store(tmp_path / "some", create=True), margin=margin)
        some.copy_pairs(own.store, reward)
        assert len(some.pairs + some.rewrites) == found
    own.store.image_path(own.pairs[1].chosen.image).unlink()
    lost = PairMiner(Store(tmp_path / "lost", create=True), margin=0.0)
    lost.copy_pairs(own.store)
    assert not lost.pairs and lost.counts["gone"] == 1
    assert not lost.store.images.folder.exists(), "nor is the other one kept for nothing"


def test_runs_are_found_below_a_folder(render, training, mined, tmp_path):
    render("a cat", [("x", 0.1), ("x", 0.9)], name="out/one")
    render("a dog", [("x", 0.1), ("x", 0.9)], name="out/two")
    training([{"prompt": "a fox", "rewrites": [("x", [0.9, 0.1])]}], name="out/three")
    assert sorted(pair.prompt for pair in mined(tmp_path / "out").pairs) == ["a cat", "a dog", "a fox"]
    with pytest.raises(BadInput, match="holds no run"):
        mined(tmp_path / "out" / "one" / "candidates")
    with pytest.raises(BadInput, match="no folder"):
        mined(tmp_path / "none")


def test_a_judge_of_its_own_kind_is_called_by_its_name(mined, tmp_path):
    """The stamp says what the numbers mean: a fingerprint is no name, and this one counts downwards."""
    file = tmp_path / "j.jsonl.rollouts.jsonl"
    kept = Store(tmp_path / "j.jsonl.pictures", create=True)
    rows = [
        {
            "key": json.dumps(["a cat", "a large cat", seed, None]),
            "prompt": "a cat",
            "score": score,
            "image": kept.put_image(picture(seed)),
        }
        for seed, score in enumerate([4.0, 1.0])
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"name": "vlm:mine", "low": 0.0, "high": 10.0, "higher_is_better": False}
    file.with_suffix(".json").write_text(json.dumps({"reward": "0f" * 32, "renderer": "fake", "spec": spec}))
    [pair] = mined(file, "vlm:mine").pairs
    assert (pair.reward, pair.chosen.seed, pair.margin) == ("vlm:mine", 1, pytest.approx(0.3))
    with pytest.raises(BadInput, match="it has those of vlm:mine"):
        mined(file, "other")
    rows[0]["score"] = "x"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match="is damaged .*; make it anew with `reprise data judge`"):
        mined(file)


def test_a_reward_that_counts_downwards(tmp_path):
    spec = RewardSpec("distance", 0.0, 10.0, higher_is_better=False)
    shown = [ScoredPicture(lambda i=i: picture(i), "x", score, i) for i, score in enumerate((7.0, 2.0, 4.0))]
    found = PairMiner(Store(tmp_path, create=True))
    found.add_group(PictureGroup("a cat", shown, spec.name, spec.higher_is_better, 10.0, "render", "r"))
    assert seeds(found) == [("x", 1, 0)] and found.pairs[0].margin == pytest.approx(0.5)


@pytest.mark.parametrize("scores", [(1e308, -1e308), (0.1, float("nan")), (float("inf"),)])
def test_scores_that_have_no_margin(scores):
    shown = [ScoredPicture(lambda: None, "x", score) for score in scores]
    with pytest.raises(BadInput, match="scores of 'r' that are numbers a finite distance apart, got"):
        PictureGroup("a cat", shown, "r", True, 1.0, "table", "t.csv")


def test_two_that_look_the_same_are_no_pair(tmp_path):
    """A judge that says something else each time; nobody can learn from a picture against itself."""
    shown = [ScoredPicture(lambda: picture(1), "x", score, seed) for seed, score in enumerate((0.2, 0.9))]
    found = PairMiner(Store(tmp_path, create=True))
    found.add_group(PictureGroup("a cat", shown, "shapeworld", True, 1.0, "render", "r"))
    assert not found.pairs and found.counts["ties"] == 1 and not list(tmp_path.iterdir())
