"""Every place that takes a rewriter's name, with every kind of name: it comes to the point where the rewriter
is made, or is refused in one line."""

import json

import pytest

from .conftest import AWAY

NO_REASONS = "gives no reasons to learn"
# As in `test_reward_places`.
KINDS = {
    "registry": ("template", ("template", ())),
    "embedded": ("reprompt", ("reprompt", ())),
    "embedded refiner": ("prip", ("prip", ())),
    "folder": ("{lm}", ("reprompt", ("{lm}",))),
    "folder of a refiner": ("{refiner}", ("prip", ("{refiner}",))),
    "refiner": ("prip:{refiner}", ("prip", ("{refiner}",))),
    "promptist": ("promptist:{lm}", ("promptist", ("{lm}",))),
    "hub name": ("owner/model", ("reprompt", ("owner/model",))),
    "chat": ("chat:qwen3:8b@{away}/v1", ("chat", ("{away}/v1", "qwen3:8b"))),
    "unknown": ("reprmpt", "unknown rewriter 'reprmpt'; did you mean 'reprompt'"),
    "unknown kind": ("chta:qwen3:8b@{away}/v1", "unknown kind of rewriter 'chta'; did you mean 'chat'"),
    "no address": ("chat:qwen3", "expected --rewriter chat:MODEL@URL"),
    "no server's address": ("chat:m@http://u:p@h/v1", "expected an address such as"),
    "no model": ("promptist", "names no model; expected promptist:FOLDER"),
    "not installed": ("prip:mine", "there is no model 'mine', and none is installed; expected prip:FOLDER"),
}


def render(*more):
    return ("render", "a red circle", "--renderer", "fake", "--judge", "shapeworld", *more)


def evaluate(what, *more):
    few = ("--task", "colors", "--per-task", 1, "--seeds", 1)
    return ("evaluate", what, *more, "--renderer", "fake", *few)


PLACES = {
    "rewrite": lambda name: ("rewrite", "a red circle", "--rewriter", name),
    "render --rewriter": lambda name: render("--rewriter", name),
    "render --corrector": lambda name: render("--rewriter", "none", "--corrector", name),
    "data rewrites": lambda name: ("data", "rewrites", "p.txt", "--rewriter", name),
    "evaluate shapeworld": lambda name: evaluate("shapeworld", "--rewriter", name),
    "evaluate rewriters": lambda name: evaluate("rewriters", f"a={name}"),
    "evaluate search": lambda name: evaluate("search", rows(rewriter=name)),
    "evaluate search, corrector": lambda name: evaluate("search", rows(corrector=name, reflect=1)),
}
OTHERWISE = {
    ("data rewrites", kind): NO_REASONS
    for kind in ("registry", "embedded refiner", "folder of a refiner", "refiner", "promptist")
}


def rows(**row):
    with open("rows.yaml", "w") as file:
        json.dump({"row": row}, file)
    return "rows.yaml"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_name(check, stop_at, things, tmp_path, place, kind):
    (tmp_path / "p.txt").write_text("a photo of a red circle\na photo of a blue star\n")
    name, expected = KINDS[kind]
    expected = OTHERWISE.get((place, kind), expected)

    def fill(text):
        return text.format(lm=things.lm, refiner=things.refiner, away=AWAY)

    if not isinstance(expected, str):
        expected = (expected[0], tuple(map(fill, expected[1])))
    words = PLACES[place](fill(name))
    stop_at("rewriters", ("none",))
    check(words, expected)
