"""The public fake behaves like a renderer: seeds, previews, pruning, counting, refusing."""

from __future__ import annotations

import pytest
import torch

from reprise.backend.core.errors import BadInput, Interrupted, RenderFailed
from reprise.backend.core.types import Job
from reprise.backend.renderers.fake import FakeRenderer

JOBS = [Job("a red cat", 1), Job("a red cat", 2), Job("two dogs", 1)]


def test_pictures_depend_on_the_job_alone():
    fake = FakeRenderer(steps=4, size=16)
    first = fake.render(JOBS).images
    assert torch.equal(FakeRenderer(steps=4, size=16).render([JOBS[2]]).images[0], first[2])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert first[0].shape == (16, 16, 3) and 0 <= first[0].min() <= first[0].max() <= 1
    assert fake.calls == [JOBS]


def test_previews_approach_and_pruning_counts(cuts):
    watcher = cuts({1: [0, 2], 3: [2], 4: [2]})
    drawn = FakeRenderer(steps=4, rows_per_step=2).render(JOBS, watcher)
    assert drawn.pruned_at == [3, 1, None] and drawn.images[0] is None
    assert drawn.denoiser_rows == 2 * (3 + 2 + 2 + 1) and drawn.denoiser_rows_full == 2 * 3 * 4
    away = [(seen[rows.index(2)] - drawn.images[2]).abs().mean() for _, rows, seen in watcher.seen]
    assert away[0] > away[1] > away[2] == 0


def test_a_search_without_rows_ends():
    class Nobody:
        steps = frozenset({1})

        def look(self, step, rows, previews):
            return []

    drawn = FakeRenderer(steps=4).render(JOBS, Nobody())
    assert drawn.images == [None] * 3 and drawn.denoiser_rows == 3


def test_progress_may_interrupt():
    def stop(step, steps):
        if step == 2:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        FakeRenderer(steps=4).render(JOBS, progress=stop)


def test_a_draw_function_gives_other_pictures():
    fake = FakeRenderer(draw=lambda prompt, seed: torch.full((8, 8, 3), 0.2 * seed))
    assert fake.render(JOBS).images[1].mean() == pytest.approx(0.4)


def test_bad_input_is_refused(cuts):
    for settings in ({"steps": 0}, {"size": 12}, {"rows_per_step": 0}):
        with pytest.raises(BadInput):
            FakeRenderer(**settings)
    with pytest.raises(BadInput):
        FakeRenderer().render([Job(" ", 1)])
    with pytest.raises(BadInput):
        FakeRenderer(steps=2).render(JOBS, cuts({3: []}))
    watcher = cuts({1: [0]})
    watcher.look = lambda step, rows, previews: [9]
    with pytest.raises(RenderFailed, match=r"\[9\]"):
        FakeRenderer().render(JOBS, watcher)
