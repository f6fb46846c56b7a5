"""The table of rewriters, with a renderer that draws by its prompt: rows, gains, words, stored results."""

import gc
import json
import random
import weakref

import pytest
import torch

from reprise.backend.core.errors import BadInput, UnknownName
from reprise.backend.core.types import Rewrite, RewriterCapabilities
from reprise.backend.evaluation import rewriters as ablation
from reprise.backend.evaluation.rewriters import ORACLE, TYPED, check_rows, compare_rewriters
from reprise.backend.renderers.fake import FakeRenderer
from reprise.backend.rewards.shapeworld import ShapeWorldStrict
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.prompts import parse_prompt, sample_layout
from reprise.backend.shapeworld.scenes import random_scene


def drawn(prompt, seed):
    """Draws the prompt right if it says "sure" or a size, as the oracle's do; else for one seed in three."""
    rng = random.Random(f"{prompt} {seed}")
    right = "sure" in prompt or "large" in prompt or rng.random() < 1 / 3
    scene = sample_layout(parse_prompt(prompt), rng) if right else random_scene(rng)
    return torch.from_numpy(draw(scene).copy()).float() / 255


class Adds:
    """Appends words, and gives no readable answer for two things. Counts its instances and prompts."""

    name, alive, asked = "adds", 0, 0
    capabilities = RewriterCapabilities()

    def __init__(self, words, fingerprint=None):
        self.words, self.fingerprint = words, fingerprint or words
        Adds.alive += 1
        assert Adds.alive == 1, "the previous rewriter is still in memory"
        weakref.finalize(self, Adds.gone)

    @staticmethod
    def gone():
        Adds.alive -= 1

    def rewrite(self, prompts, variants=1, seed=0, critiques=None):
        Adds.asked += len(prompts)
        return [
            [
                Rewrite("", p, self.name, "the answer has no <prompt>")
                if " and " in p
                else Rewrite("", f"{p} {self.words}", self.name)
            ]
            for p in prompts
        ]


@pytest.fixture(autouse=True)
def counted():
    gc.collect()
    Adds.alive = Adds.asked = 0


METHODS = {"sure": ["a", "b"], "vague": ["c"]}
TASKS = ("two_object", "counting", "position")
REWRITERS = {"a": "surely", "b": "sure, very sure", "c": "vaguely"}


def run(folder, methods=METHODS, renderer=None, **settings):
    makers = {one: lambda one=one: Adds(REWRITERS[one]) for given in methods.values() for one in given}
    renderer = renderer or FakeRenderer(steps=4, draw=drawn, rows_per_step=2)
    settings = {"per_task": 2, "seeds": 2, "tasks": TASKS, **settings}
    return compare_rewriters(
        methods=methods,
        rewriters=makers,
        renderer=renderer,
        judge=ShapeWorldStrict(),
        folder=folder,
        **settings,
    )


def test_every_row_has_its_trainings_and_its_gain_over_the_best(tmp_path):
    result = run(tmp_path)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [TYPED, "sure", "vague", ORACLE]
    for row in rows.values():
        mean, low, high = row["overall"]
        assert 0 <= low <= mean <= high <= 1 and tuple(row["tasks"]) == TASKS
        assert row["cost"] == {"denoiser_rows": 8}
    assert rows[ORACLE]["overall"][0] > 0.7 > rows[TYPED]["overall"][0]
    assert "trainings" not in rows[TYPED] and "gain" not in rows["sure"]
    seen = rows["sure"]["trainings"]
    assert [(one["rewriter"], one["fingerprint"]) for one in seen] == list(REWRITERS.items())[:2]
    mean = (seen[0]["overall"] + seen[1]["overall"]) / 2
    assert rows["sure"]["overall"][0] == pytest.approx(mean, abs=1e-4)
    for name in (TYPED, "vague", ORACLE):
        gain = rows[name]["gain"]
        assert gain["over"] == "sure" == result["settings"]["baseline"]
        difference = rows[name]["overall"][0] - rows["sure"]["overall"][0]
        assert gain["interval"][0] == pytest.approx(difference, abs=2e-4)


def test_words_are_counted_in_answers_that_could_be_parsed(tmp_path):
    rows = {row["name"]: row["rewrites"] for row in run(tmp_path)["rows"]}
    kept = [json.loads(line) for line in (tmp_path / "rewrites.jsonl").read_text().splitlines()]
    assert len(kept) == 3 * 6
    two = [row for row in kept if row["rewriter"] == "vaguely" and row["unreadable"]]
    assert len(two) == 2 and all(row["rewrite"] == row["prompt"] for row in two), "drawn as typed"
    assert rows["vague"]["unreadable"] == 0.3333
    read = [
        len(row["prompt"].split()) + 1
        for row in kept
        if row["rewriter"] == "vaguely" and not row["unreadable"]
    ]
    assert rows["vague"]["words"] == round(sum(read) / len(read), 1)
    assert "unreadable" not in rows[TYPED]


def test_a_rewriter_under_two_names_is_run_once_and_has_no_gain(tmp_path):
    renderer = FakeRenderer(steps=4, draw=drawn)
    result = run(tmp_path, {"one": ["c"], "other": ["c"]}, renderer)
    first, second = result["rows"][1:3]
    assert first["overall"] == second["overall"] and first["tasks"] == second["tasks"]
    assert second["gain"]["interval"] == [0.0, 0.0, 0.0] and Adds.asked == 6
    jobs = [job for call in renderer.calls for job in call]
    assert len(jobs) == len(set(jobs)) <= 2 * 3 * 6 and max(map(len, renderer.calls)) <= 48


def test_the_baseline_can_be_named(tmp_path):
    rows = run(tmp_path, baseline=TYPED)["rows"]
    assert [row["gain"]["over"] for row in rows if "gain" in row] == [TYPED] * 3


def test_a_stopped_call_continues_to_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "BATCH", 16)
    whole = run(tmp_path / "whole")

    class Stops(FakeRenderer):
        def render(self, jobs, *rest, **more):
            if self.calls:
                raise KeyboardInterrupt
            return super().render(jobs, *rest, **more)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", renderer=Stops(steps=4, draw=drawn, rows_per_step=2))
    lines = tmp_path / "part" / "scores.jsonl"
    assert len(lines.read_text().splitlines()) == 16
    with lines.open("a") as file:
        file.write('{"picture": "ab')  # as a killed process leaves it
    Adds.asked = 0
    renderer = FakeRenderer(steps=4, draw=drawn, rows_per_step=2)
    assert run(tmp_path / "part", renderer=renderer) == whole
    assert Adds.asked == 0 and sum(map(len, renderer.calls)) == len(lines.read_text().splitlines()) - 16


def test_a_call_with_another_row_draws_only_new_pictures(tmp_path):
    run(tmp_path, {"vague": ["c"]})
    renderer = FakeRenderer(steps=4, draw=drawn, rows_per_step=2)
    Adds.asked = 0
    more = run(tmp_path, renderer=renderer)
    assert Adds.asked == 12 and all("sure" in job.prompt for call in renderer.calls for job in call)
    assert more["rows"] == run(tmp_path / "other")["rows"]


def test_pictures_are_reused_when_their_scores_are_missing(tmp_path):
    whole = run(tmp_path)
    (tmp_path / "scores.jsonl").unlink()
    renderer = FakeRenderer(steps=4, draw=drawn, rows_per_step=2)
    assert run(tmp_path, renderer=renderer) == whole and not renderer.calls


def test_results_of_another_renderer_are_not_reused(tmp_path):
    run(tmp_path)
    renderer = FakeRenderer(steps=5, draw=drawn)  # another fingerprint
    result = run(tmp_path, renderer=renderer)
    assert renderer.calls and result["rows"][0]["cost"] == {"denoiser_rows": 5}


def test_the_same_weights_twice_in_a_row_are_refused_before_any_work(tmp_path):
    makers = {"x": lambda: Adds("sure", "same"), "y": lambda: Adds("sure", "same")}
    with pytest.raises(BadInput, match="'sure' has the same weights twice, x and y"):
        compare_rewriters(
            methods={"sure": ["x", "y"]},
            rewriters=makers,
            renderer=FakeRenderer(),
            folder=tmp_path,
            judge=ShapeWorldStrict(),
        )
    assert Adds.asked == 0 and not any(tmp_path.iterdir())


def test_row_names_and_the_baseline_are_checked():
    check_rows({"vague": ["c"]}, "vague")
    with pytest.raises(BadInput, match="the row 'as typed' is always in the table"):
        check_rows({TYPED: ["c"]}, None)
    with pytest.raises(UnknownName, match="unknown baseline 'vage'; did you mean 'vague'"):
        check_rows({"vague": ["c"]}, "vage")
