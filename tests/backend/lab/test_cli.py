"""`reprise lab weights`: what is made for which names, and what is refused before any work."""

import pytest

from ..cli.conftest import reprise  # noqa: F401


@pytest.fixture
def calls(monkeypatch):
    """What the recipes are asked for; nothing is trained."""
    from reprise.backend.lab.weights import ablation, build, judge, refiner, rewriter, turbo

    asked = []
    for module in (ablation, refiner):
        monkeypatch.setattr(module, "build", lambda work, name, log: asked.append((str(work), name)) or work)
    monkeypatch.setattr(refiner, "swap", lambda work: asked.append((str(work), "swap")) or {"lost": 1})
    for module in (rewriter, judge, turbo):
        monkeypatch.setattr(module, "build", lambda work, log: asked.append((str(work),)) or work)
    monkeypatch.setattr(judge, "tune", lambda work, log, seed: asked.append((str(work), seed)) or work)
    monkeypatch.setattr(build, "build", lambda *given: asked.append(tuple(map(str, given[:3]))))
    return asked


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["rewriter", "w"], [("w",)]),
        (["turbo", "w"], [("w",)]),
        (["judge", "w", "1", "2"], [("w",), ("w", 1), ("w", 2)]),
        (["refiner", "w", "log", "ppo-0"], [("w", "log"), ("w", "ppo-0")]),
        (["ablation", "w", "sft-rl-1"], [("w", "sft-rl-1")]),
        (["build", "--work", "w", "--out", "o", "--seed", "3"], [("w", "o", "3")]),
    ],
)
def test_recipes_by_name(reprise, calls, words, asked):  # noqa: F811
    done = reprise("lab", "weights", *words)
    assert done.code == 0 and calls == asked, done.err
    assert done.out.split() == ["w"] * len(asked) if words[0] != "build" else not done.out


def test_without_names_all_are_made(reprise, calls):  # noqa: F811
    assert reprise("lab", "weights", "ablation", "w").code == 0
    assert [name for _, name in calls[:4]] == ["base", "base-plain", "sft-plain", "rl-0"] and len(calls) == 15
    calls.clear()
    assert reprise("lab", "weights", "refiner", "w").code == 0
    assert calls[0] == ("w", "encoder-0") and calls[-1] == ("w", "swap") and len(calls) == 19


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["refiner", "w", "ppo-3"], "unknown refiner 'ppo-3'"),
        (["ablation", "w", "sft-rl"], "unknown rewriter 'sft-rl'; did you mean 'sft-rl-"),
        (["judge", "w", "one"], "'[SEED…]': Input should be a valid integer"),
        (["build", "--seed", "-1"], "--seed must be 0 to"),
    ],
)
def test_unknown_names_are_refused(reprise, calls, words, part):  # noqa: F811
    done = reprise("lab", "weights", *words)
    assert (done.code, done.out) == (2, "") and part in done.err and not calls, done.err
