"""Pairs from the files of runs: renders, trainings, rounds, judge data and other stores."""

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
    """(path, reward, **options) -> a PairMiner after mining `path`; `notes` are the remarks for the user."""

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


def test_the_best_and_the_worst_picture_of_each_drawn_prompt_pair(render, mined):
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


def test_by_prompt_pictures_of_different_rewrites_pair(render, mined):
    found = mined(render("a cat", CANDIDATES), by="prompt", most=2)
    assert seeds(found) == [("a cat", 11, 13), ("a cat", 12, 10)]
    assert [side.drawn_as for side in (found.pairs[0].chosen, found.pairs[1].chosen)] == ["low", "large"]


def test_pairs_below_the_margin_are_dropped_as_ties(render, mined):
    folder = render("a cat", [("x", 0.50), ("x", 0.54), ("y", 0.5), ("y", 0.5), ("z", 0.5), ("z", 0.7)])
    assert seeds(mined(folder)) == [("z", 15, 14)]
    assert mined(folder).counts["ties"] == 2
    assert len(seeds(mined(folder, margin=0.0))) == 2, "equal scores are a tie whatever the margin"
    assert not seeds(mined(folder, margin=0.3))


def test_another_reward_is_compared_in_its_own_range(render, mined):
    other = [{"image-reward": value} for value in (1.5, -0.5)]
    folder = render("a cat", [("x", 0.2), ("x", 0.9)], scores=other)
    found = mined(folder, "image-reward")
    assert seeds(found) == [("x", 10, 11)]
    assert found.pairs[0].margin == pytest.approx(0.5), "2 of its range of 4"
    with pytest.raises(BadInput, match="image-reward, shapeworld"):
        mined(folder, "pick-score")


def test_the_selected_picture_tells_the_direction_of_an_unknown_reward(render, mined):
    folder = render("a cat", [("x", 0.2), ("x", 0.9)], judge="remote:x@y", rewards={"image-reward": 1.0})
    assert mined(folder).pairs[0].reward == "remote:x@y+image-reward"
    record = json.loads((folder / RECORD).read_text())
    record["best"] = 0
    (folder / RECORD).write_text(json.dumps(record))
    assert seeds(mined(folder)) == [("x", 10, 11)], "the worse score was selected"


@pytest.mark.parametrize("asked", ["vlm:embedded", "vlm:embedded#critique", "vlm:runs/embedded/final"])
@pytest.mark.parametrize("stored", ["vlm:embedded", "vlm:embedded#critique"])
def test_a_judge_has_one_name_however_it_was_named(render, mined, asked, stored):
    """The name of its scores, whether the run named a folder, a server or a mode."""
    folder = render("a cat", [("x", 0.2), ("x", 0.9)], scores=[{stored: 0.2}, {stored: 0.9}], judge=asked)
    record = json.loads((folder / RECORD).read_text())
    for candidate in record["candidates"]:
        del candidate["scores"]["shapeworld"]
    (folder / RECORD).write_text(json.dumps(record))
    [pair] = mined(folder).pairs
    assert (pair.reward, pair.chosen.scores) == ("vlm:embedded", {"vlm:embedded": 0.9})
    for name in ("vlm:embedded", "vlm:embedded#critique"):
        assert mined(folder, name).pairs == [pair]


def test_rewrites_are_compared_by_the_mean_score_of_their_pictures(render, mined):
    assert not mined(render("a cat", CANDIDATES)).rewrites, "both have a mean of .5"
    [texts] = mined(render("a dog", [("large", 0.9), ("low", 0.2), ("large", 0.7), ("low", None)])).rewrites
    assert (texts.chosen.rewrite, texts.chosen.pictures) == ("large", 2)
    assert texts.chosen.reason == "Why large." and texts.chosen.score == pytest.approx(0.8)
    assert (texts.rejected.rewrite, texts.rejected.score) == ("low", 0.2)


def test_missing_or_damaged_pictures_make_no_pair(render, mined):
    folder = render("a cat", CANDIDATES)
    (folder / "candidates" / "02-12.png").unlink()
    (folder / "candidates" / "03-13.png").write_bytes(b"\x89PNG half")
    found = mined(folder)
    assert not found.pairs and found.counts["gone"] == 2


def test_rollouts_of_a_training_give_pairs_and_rewrites(training, mined):
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
    assert (pair.renderer, pair.prompt) == ("fake", "felis"), "what the judge read"
    assert seeds(mined(run, by="prompt")) == [("felis", 0, 0)]
    [texts] = found.rewrites
    assert texts.prompt == "a cat", "what the rewriter read"
    assert (texts.chosen.rewrite, texts.rejected.rewrite) == ("a large cat", "a cat, low")
    assert texts.chosen.pictures == 2 and texts.margin == pytest.approx(0.35)


def test_rounds_of_a_renderer_give_pairs(rounds, mined):
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
def test_a_damaged_rollout_line_is_refused_with_its_file(rounds, mined, row):
    with pytest.raises(
        BadInput, match=r"1/rollouts.jsonl(, line 2: | is damaged \(\w+: ).*; restore"
    ) as caught:
        mined(rounds([ROW, row]))
    assert "\n" not in str(caught.value)


def test_damaged_settings_and_records_are_refused_with_their_file(rounds, render, training, mined):
    run = rounds([ROW], ["shapeworld"])
    with pytest.raises(BadInput, match="rounds/config.yaml is damaged"):
        mined(run)
    folder = render("a cat", CANDIDATES, rewards=[["a"], ["b"]])
    with pytest.raises(BadInput, match="record.json is damaged"):
        mined(folder)
    run = training([{"prompt": "a dog", "rewrites": [("x", [0.9, 0.1])]}])
    file = run / "rollouts" / "rollouts.jsonl"
    file.write_bytes(file.read_bytes() + b"\xff\n")
    with pytest.raises(BadInput, match="rollouts.jsonl, line 3: not UTF-8 text"):
        mined(run)


def test_an_assumed_direction_is_noted(rounds, render, mined):
    """A served reward has the direction of ours of that name; of others, higher is assumed to be better."""
    scores = [{"remote:x@http://h": 1.0}, {"remote:x@http://h": 2.0}]
    found = mined(rounds([{**ROW, "scores": scores}], {"remote:x@http://h": 1.0}))
    assert seeds(found) == [("a cat", 1, 0)] and len(found.notes) == 1
    assert "not recorded whether higher scores of remote:x@http://h are better" in found.notes[0]
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
    assert seeds(found) == [("x", 10, 11)] and "higher scores of y" in found.notes[0]
    assert not mined(folder, "z").notes, "the best picture was selected by it"


def test_rollouts_without_cached_scores_use_those_of_the_line(training, mined):
    run = training([{"prompt": "a cat", "rewrites": [("x", [0.9]), ("y", [0.1])]}])
    for path in (run / "rollouts" / "pictures").rglob("*.json"):
        path.unlink()
    assert seeds(mined(run, by="prompt")) == [("a cat", 0, 0)], "one picture: the row has its score"
    with pytest.raises(BadInput, match="expected one of shapeworld, structure"):
        mined(run, "pick-score")
    with pytest.raises(BadInput, match="no reward that scores pictures"):
        mined(training([], {"structure": 1.0}, "other"))


def test_a_trainings_rewards_are_averaged_by_their_weights(training, mined):
    """Each reward is first scaled to 0..1 by its range."""
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


def test_usable_pairs_of_another_store_are_copied(render, mined, tmp_path):
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
    assert not lost.store.images.folder.exists(), "the pair's other picture is not copied either"


def test_runs_are_found_below_a_folder(render, training, mined, tmp_path):
    render("a cat", [("x", 0.1), ("x", 0.9)], name="out/one")
    render("a dog", [("x", 0.1), ("x", 0.9)], name="out/two")
    training([{"prompt": "a fox", "rewrites": [("x", [0.9, 0.1])]}], name="out/three")
    assert sorted(pair.prompt for pair in mined(tmp_path / "out").pairs) == ["a cat", "a dog", "a fox"]
    with pytest.raises(BadInput, match="holds no run"):
        mined(tmp_path / "out" / "one" / "candidates")
    with pytest.raises(BadInput, match="no folder"):
        mined(tmp_path / "none")


def test_judge_data_are_compared_by_the_recorded_reward(mined, tmp_path):
    """The stamp file holds the reward's name, range and direction; here lower is better."""
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
    with pytest.raises(BadInput, match="no scores of 'other'; expected vlm:mine"):
        mined(file, "other")
    rows[0]["score"] = "x"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match="is damaged .*; make it again with `reprise data judge`"):
        mined(file)


def test_lower_scores_win_if_lower_is_better(tmp_path):
    spec = RewardSpec("distance", 0.0, 10.0, higher_is_better=False)
    shown = [ScoredPicture(lambda i=i: picture(i), "x", score, i) for i, score in enumerate((7.0, 2.0, 4.0))]
    found = PairMiner(Store(tmp_path, create=True))
    found.add_group(PictureGroup("a cat", shown, spec.name, spec.higher_is_better, 10.0, "render", "r"))
    assert seeds(found) == [("x", 1, 0)] and found.pairs[0].margin == pytest.approx(0.5)


@pytest.mark.parametrize("scores", [(1e308, -1e308), (0.1, float("nan")), (float("inf"),)])
def test_scores_without_a_finite_margin_are_refused(scores):
    shown = [ScoredPicture(lambda: None, "x", score) for score in scores]
    with pytest.raises(BadInput, match="finite scores of 'r' with a finite difference, got"):
        PictureGroup("a cat", shown, "r", True, 1.0, "table", "t.csv")


def test_identical_pictures_make_no_pair(tmp_path):
    """Even if the judge scored them differently."""
    shown = [ScoredPicture(lambda: picture(1), "x", score, seed) for seed, score in enumerate((0.2, 0.9))]
    found = PairMiner(Store(tmp_path, create=True))
    found.add_group(PictureGroup("a cat", shown, "shapeworld", True, 1.0, "render", "r"))
    assert not found.pairs and found.counts["ties"] == 1 and not list(tmp_path.iterdir())
