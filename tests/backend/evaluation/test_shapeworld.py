"""The evaluation with a renderer that draws scenes by its prompt: table, gains, replay, resuming."""

import random

import pytest
import torch

from reprise.backend.core.errors import BadInput, UnknownName
from reprise.backend.core.types import Rewrite, RewriterCapabilities
from reprise.backend.evaluation.shapeworld import evaluate_chain, replay, replayed_rows
from reprise.backend.renderers.fake import FakeRenderer
from reprise.backend.rewards.shapeworld import ShapeWorldSoft
from reprise.backend.search.best_of_n import search
from reprise.backend.search.pruning import FullSchedule, HalvingSchedule
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.prompts import parse_prompt, sample_layout
from reprise.backend.shapeworld.scenes import random_scene


def drawn(prompt, seed):
    """Draws the prompt right if it is marked as rewritten or spelled out, else for one seed in four."""
    rng = random.Random(f"{prompt} {seed}")
    helped = "background" in prompt or "better" in prompt
    right = rng.random() < (0.7 if helped else 0.25)
    scene = sample_layout(parse_prompt(prompt), rng) if right else random_scene(rng)
    return torch.from_numpy(draw(scene).copy()).float() / 255


class Better:
    name = "better"
    capabilities = RewriterCapabilities()
    fingerprint = None

    def rewrite(self, prompts, variants=1, seed=0, critiques=None):
        return [[Rewrite("", f"{p} better", self.name) for _ in range(variants)] for p in prompts]


class Same(Better):
    def rewrite(self, prompts, variants=1, seed=0, critiques=None):
        return [[Rewrite("", p, "none")] * variants for p in prompts]


def run(tmp_path=None, **settings):
    roles = {
        "rewriter": Better(),
        "template": Same(),
        "judge": ShapeWorldSoft(),
        "renderer": FakeRenderer(steps=8, draw=drawn, rows_per_step=2),
    }
    defaults = {"per_task": 3, "seeds": 2, "best_of": 4, "rounds": 1, "variants": 2}
    return evaluate_chain(**roles, **{**defaults, **settings}, folder=tmp_path)


def test_the_table_has_every_row_with_intervals_and_costs():
    result = run()
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [
        "terse",
        "template",
        "rewriter",
        "+ best of 4, full",
        "+ best of 4, pruned",
        "+ reflection",
        "spelled-out oracle",
    ]
    for row in rows.values():
        mean, low, high = row["overall"]
        assert 0 <= low <= mean <= high <= 1 and len(row["tasks"]) == 6
    assert rows["terse"]["cost"]["denoiser_rows"] == 16
    assert rows["+ best of 4, full"]["cost"]["denoiser_rows"] == 64
    assert 16 < rows["+ best of 4, pruned"]["cost"]["denoiser_rows"] < 64
    best, alone, terse = (rows[name]["overall"][0] for name in ("+ best of 4, full", "rewriter", "terse"))
    assert best > alone > terse
    assert rows["+ reflection"]["overall"][0] >= rows["+ best of 4, pruned"]["overall"][0]
    assert [name for name, row in rows.items() if row["judge"]] == [n for n in rows if n.startswith("+")]
    assert rows["rewriter"]["gain"]["over"] == "terse"


def test_a_stopped_run_continues_to_the_same_result(tmp_path):
    whole = run()
    run(tmp_path)
    lines = (tmp_path / "partial.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "partial.jsonl").write_text("".join(lines[: len(lines) // 2]))
    assert run(tmp_path)["rows"] == whole["rows"]


def test_results_of_other_settings_are_not_reused(tmp_path):
    run(tmp_path)
    other = run(tmp_path, rounds=0)
    assert other["rows"] == run(rounds=0)["rows"]


def test_a_call_for_more_prompts_or_seeds_continues(tmp_path):
    fewer = run(tmp_path, per_task=2, seeds=1)
    first = (tmp_path / "partial.jsonl").read_text()
    assert run(tmp_path)["rows"] == run()["rows"]
    assert (tmp_path / "partial.jsonl").read_text().startswith(first)
    assert run(tmp_path, per_task=2, seeds=1)["rows"] == fewer["rows"], (
        "results of further prompts are not counted"
    )


def test_a_table_of_some_tasks_uses_the_same_prompts_and_pictures(tmp_path):
    whole = run(tmp_path)
    some = run(tmp_path, tasks=["position", "two-object"])
    assert some["settings"]["tasks"] == ["two_object", "position"] and some["settings"]["prompts"] == 6
    for row, full in zip(some["rows"], whole["rows"], strict=True):
        assert list(row["tasks"]) == ["two_object", "position"]
        for task, interval in row["tasks"].items():
            assert interval[0] == full["tasks"][task][0]
    assert len((tmp_path / "partial.jsonl").read_text().splitlines()) == 7 * 18 * 2, "nothing is drawn again"


def test_an_unknown_task_is_refused_with_the_closest_match():
    with pytest.raises(UnknownName, match="unknown task 'colour'; did you mean 'colors'. expected one of"):
        run(tasks=["counting", "colour"])


@pytest.mark.parametrize("name", ["per_task", "seeds", "best_of", "variants"])
def test_impossible_sizes_are_refused(name):
    with pytest.raises(BadInput, match="must be at least 1, got 0"):
        run(**{name: 0})


def test_replay_prunes_what_a_real_search_prunes():
    prompt, judge = "a photo of a red circle", ShapeWorldSoft()
    schedule = HalvingSchedule({3: 4, 6: 1})

    def go(plan):
        return search(FakeRenderer(draw=drawn), judge, prompt, [prompt], n=8, seed=0, schedule=plan)

    class Looking(HalvingSchedule):
        def keep(self, step, scores):
            return list(scores)

    recorded, real = go(Looking(schedule.cuts)), go(schedule)
    pruned = replay(recorded.candidates, schedule)
    assert pruned == [c.pruned_at for c in real.candidates]
    assert replayed_rows(pruned, 8, 1) == real.cost.denoiser_rows
    assert replay(recorded.candidates, FullSchedule()) == [None] * 8
