"""The table of searches, with a renderer that draws by its prompt and a LoRA that is a word."""

import json
import random

import pytest
import torch

from reprise.backend.core.errors import BadInput, UnknownName
from reprise.backend.core.types import Rewrite, RewriterCapabilities
from reprise.backend.evaluation.tables import RoleLoaders, TableRow, evaluate_rows, read_rows
from reprise.backend.renderers.fake import FakeRenderer
from reprise.backend.rewards.shapeworld import ShapeWorldSoft, ShapeWorldStrict
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.prompts import parse_prompt, sample_layout
from reprise.backend.shapeworld.scenes import random_scene

CHANCE = {None: 0.25, "a": 0.5, "b": 0.9, "c": 0.5}  # of a right picture with each LoRA
TASKS = ("two_object", "position")


class Drawn(FakeRenderer):
    """Draws right pictures with the probability of its LoRA; counts the renderers made and their jobs."""

    made, jobs = [], 0

    def __init__(self, lora, cache=None):
        def one(prompt, seed):
            rng = random.Random(f"{prompt} {seed}")
            right = rng.random() < CHANCE[lora]
            return (
                torch.from_numpy(
                    draw(sample_layout(parse_prompt(prompt), rng) if right else random_scene(rng)).copy()
                ).float()
                / 255
            )

        super().__init__(steps=8, draw=one, rows_per_step=2)
        self.fingerprint = f"drawn {lora}"
        Drawn.made.append(lora)

    def render(self, jobs, *rest, **more):
        Drawn.jobs += len(jobs)
        return super().render(jobs, *rest, **more)


class Same:
    name = "same"
    capabilities = RewriterCapabilities()
    fingerprint = None

    def rewrite(self, prompts, variants=1, seed=0, critiques=None):
        return [[Rewrite("", prompt, self.name)] * variants for prompt in prompts]


ROWS = {
    "base": TableRow(),
    "best of 4": TableRow(best_of=4),
    "PARM": TableRow(best_of=4, prune="halving"),
    "DPO": TableRow(lora=["a", "b"]),
    "DPO + PARM": TableRow(lora=["a", "b"], best_of=4, prune="halving"),
    "+ reflection": TableRow(lora=["a", "b"], best_of=4, prune="halving", reflect=1),
}


@pytest.fixture(autouse=True)
def counted():
    Drawn.made, Drawn.jobs = [], 0


def run(folder, rows=ROWS, **settings):
    loaders = RoleLoaders(Drawn, lambda name: Same(), lambda name: ShapeWorldSoft(), str)
    settings = {"per_task": 3, "seeds": 2, "tasks": TASKS, **settings}
    return evaluate_rows(rows=rows, loaders=loaders, metric=ShapeWorldStrict(), folder=folder, **settings)


def test_rows_have_intervals_costs_and_training_seeds(tmp_path):
    result = run(tmp_path)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == list(ROWS)
    for row in rows.values():
        mean, low, high = row["overall"]
        assert 0 <= low <= mean <= high <= 1 and tuple(row["tasks"]) == TASKS
    means = {name: row["overall"][0] for name, row in rows.items()}
    assert means["best of 4"] > means["base"] and means["DPO + PARM"] > means["PARM"] >= means["base"]
    assert means["+ reflection"] >= means["DPO + PARM"]
    costs = {name: (row["cost"]["denoiser_rows"], row["cost"]["judge_calls"]) for name, row in rows.items()}
    assert costs["base"] == costs["DPO"] == (16, 0) and costs["best of 4"] == (64, 4)
    assert 16 < costs["PARM"][0] < 64 and costs["PARM"][1] > 4, "pruned candidates cost less"
    assert costs["+ reflection"][0] > costs["DPO + PARM"][0]
    assert [one["with"] for one in rows["DPO"]["trainings"]] == ["a", "b"]
    assert rows["DPO"]["overall"][0] == pytest.approx(
        sum(one["overall"] for one in rows["DPO"]["trainings"]) / 2, abs=1e-4
    )
    assert "gain" not in rows["base"] and rows["DPO"]["gain"]["over"] == "base"
    assert rows["DPO"]["gain"]["interval"][0] == pytest.approx(means["DPO"] - means["base"], abs=2e-4)
    assert Drawn.made == [None, "a", "b"], "one renderer at a time, each once"
    assert result["settings"]["rows"]["PARM"] == {"best_of": 4, "prune": "halving"}


def test_a_stopped_call_continues_and_a_new_row_draws_only_itself(tmp_path):
    few = {name: ROWS[name] for name in ("base", "PARM")}
    whole = run(tmp_path / "whole", few)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", few, progress=lambda stage, done, total: stop(done))
    before = Drawn.jobs
    assert run(tmp_path / "part", few) == whole and 0 < Drawn.jobs - before < before
    before = Drawn.jobs
    more = run(tmp_path / "part", {**few, "DPO": TableRow(lora="c")})
    assert Drawn.jobs - before == 12 and more["rows"][:2] == whole["rows"]


def stop(done):
    if done >= 15:
        raise KeyboardInterrupt


def test_previews_may_have_another_judge(tmp_path):
    asked = []

    class Looks(ShapeWorldSoft):
        def score(self, images, prompts):
            asked.append(len(prompts))
            return super().score(images, prompts)

    loaders = RoleLoaders(
        Drawn, lambda name: Same(), lambda name: Looks() if name == "looks" else ShapeWorldSoft(), str
    )
    rows = {"PARM": TableRow(best_of=4, prune="halving", previews="looks")}
    result = evaluate_rows(
        rows=rows,
        loaders=loaders,
        metric=ShapeWorldStrict(),
        folder=tmp_path,
        per_task=1,
        seeds=1,
        tasks=TASKS,
    )
    assert asked and sum(asked) < sum(row["cost"]["judge_calls"] for row in result["rows"]) * len(TASKS)


def test_a_corrector_rewrites_in_reflection_rounds_only(tmp_path):
    """Rows without a corrector keep the fingerprints that they had before the setting existed."""
    seen = []

    class Corrects(Same):
        name = "corrects"

        def rewrite(self, prompts, variants=1, seed=0, critiques=None):
            seen.append(critiques)
            return super().rewrite(prompts, variants)

    loaders = RoleLoaders(
        Drawn, lambda name: Corrects() if name == "corrects" else Same(), lambda name: ShapeWorldSoft(), str
    )
    rows = {
        "same": TableRow(reflect=1),
        "corrected": TableRow(reflect=1, corrector="corrects"),
        "untold": TableRow(reflect=1, corrector="corrects", use_critique=False),
    }
    result = evaluate_rows(
        rows=rows,
        loaders=loaders,
        metric=ShapeWorldStrict(),
        folder=tmp_path,
        per_task=3,
        seeds=2,
        tasks=TASKS,
    )
    told = [bool(one and one[0]) for one in seen]
    assert any(told) and told == sorted(told, reverse=True) and told.count(False) >= told.count(True)
    assert "corrects" in result["rows"][1]["trainings"][0]["with"]
    assert len({json.loads(line)["what"] for line in (tmp_path / "pictures.jsonl").open()}) == 3
    with pytest.raises(ValueError, match="a corrector works in rounds"):
        TableRow(corrector="reprompt")


def test_a_row_may_correct_by_image_to_image(tmp_path):
    rows = {
        f"image to image, {strength}": TableRow(reflect=2, correction="image to image", strength=strength)
        for strength in (0.5, 1.0)
    }
    rows["again"] = TableRow(reflect=2)
    result = run(tmp_path, rows)
    half, whole, again = (row["cost"]["denoiser_rows"] for row in result["rows"])
    assert half < whole == again


def test_impossible_rows_are_refused(tmp_path):
    with pytest.raises(BadInput, match="'DPO' has the same weights twice"):
        run(tmp_path, {"DPO": TableRow(lora=["a", "a"])})
    with pytest.raises(UnknownName, match="baseline"):
        run(tmp_path, baseline="x")
    file = tmp_path / "rows.yaml"
    for text, message in (
        ("- a", "expected rows"),
        ("a: 3", "expected settings of 'a'"),
        ("a: {best: 3}", "best"),
        ("a: {prune: some}", "unknown pruning .some."),
        ("a: {lora: [x, y], judge: [x, y, z]}", "lists of one length"),
        ("a: {correction: redraw}", "correction is one of"),
        ("a: {strength: 2}", "strength"),
        ("a: {lora: []}", "lists of one length"),
        ("a: [", "not YAML"),
        ("a: {previews: x}", "previews are judged for pruning only"),
        ("a: {prune: 'potential:2'}", "potential:THRESHOLD"),
    ):
        file.write_text(text)
        with pytest.raises((BadInput, UnknownName), match=message):
            read_rows(file)
    file.write_text("base: {}\nDPO + PARM: {lora: [x, y], best_of: 8, prune: halving}\n")
    assert read_rows(file)["DPO + PARM"] == TableRow(lora=["x", "y"], best_of=8, prune="halving")
