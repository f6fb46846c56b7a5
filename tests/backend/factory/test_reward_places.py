"""Every place that takes a reward's name, with every kind of name: it comes to the point where the reward is
made, or is refused in one line."""

import json

import pytest
from PIL import Image

from ...fake_endpoint import MODEL
from .conftest import AWAY

SPARED = ("shapeworld", "shapeworld-strict", "structure", "length")
LOOK = "reads rewrites, not pictures"
# What a name is -> how it is written, and what comes of it: (the registry's line, what it is given), or the
# reason why it is refused.
KINDS = {
    "registry": ("image-reward", ("image-reward", ())),
    "vlm folder": ("vlm:{vlm}", ("vlm", ("{vlm}",))),
    "vlm folder and mode": ("vlm:{vlm}#checklist", ("vlm", ("{vlm}#checklist",))),
    "vlm endpoint": ("vlm:qwen2.5vl:7b@{away}/v1#match", ("vlm", ("qwen2.5vl:7b@{away}/v1#match",))),
    "remote": ("remote:image-reward@{away}", ("remote", ("{away}", "image-reward"))),
    "remote VLM": ("remote:vlm:seer#checklist@{away}", ("remote", ("{away}", "vlm:seer#checklist"))),
    "text": ("length", LOOK),
    "unknown": ("imge-reward", "unknown reward 'imge-reward'; did you mean 'image-reward'"),
    "unknown kind": ("remot:image-reward@{away}", "unknown kind of reward 'remot'; did you mean 'remote'"),
    "no address": ("remote:image-reward", "expected remote:NAME@URL"),
    "no server's address": ("remote:x@http://u:p@h", "expected an address such as http://127.0.0.1:8009"),
    "no model": ("vlm", "names no model; give vlm:FOLDER or vlm:MODEL@URL"),
    "no folder": ("vlm:no/where", "there is no folder no/where"),
    "unknown mode": ("vlm:{vlm}#chekclist", "did you mean 'checklist'"),
}


def render(*more):
    return ("render", "a red circle", "--renderer", "fake", "--rewriter", "none", *more)


def evaluate(what, *more):
    few = ("--task", "colors", "--per-task", 1, "--seeds", 1)
    return ("evaluate", what, *more, "--renderer", "fake", *few)


def settings(name, **more):
    return json.dumps({name: 1.0, **more})


DRAWS = "renderer.name=fake"
PLACES = {
    "render --judge": lambda name: render("--judge", name),
    "render --reward": lambda name: render("--reward", f"{name}=2"),
    "render --reward in a mix": lambda name: render("--reward", "shapeworld=1", "--reward", name),
    "render --previews": lambda name: render("--previews", name),
    "score --reward": lambda name: ("score", "a.png", "--prompt", "a red circle", "--reward", name),
    "score --held-out": lambda name: ("score", "a.png", "--prompt", "a red circle", "--held-out", name),
    "serve rewards": lambda name: ("serve", "rewards", "--port", 0, "--reward", name),
    "data judge": lambda name: (
        "data",
        "judge",
        "p.txt",
        "--renderer",
        "fake",
        "--threshold",
        0.5,
        "--reward",
        name,
    ),
    "data pictures": lambda name: ("data", "pictures", "p.txt", "--renderer", "fake", "--reward", name),
    "data rewrites": lambda name: (
        *("data", "rewrites", "p.txt", "--rewriter", f"chat:{MODEL}@ENDPOINT"),
        *("--keep-best", "--renderer", "fake", "--reward", name),
    ),
    "evaluate rewriters": lambda name: evaluate("rewriters", "a=none", "--judge", name),
    "evaluate search": lambda name: evaluate("search", rows(), "--judge", name),
    "evaluate search, judge": lambda name: evaluate("search", rows(judge=name, best_of=2)),
    "evaluate search, previews": lambda name: evaluate(
        "search", rows(previews=name, best_of=2, prune="halving")
    ),
    "evaluate judges": lambda name: ("evaluate", "judges", name, "--data", "judge.jsonl"),
    "lab bench parm": lambda name: ("lab", "bench", "parm", "--renderer", "fake", "--previews", name),
    "train grpo": lambda name: (
        *("train", "grpo", "model=shapeworld", "prompts=p.txt", DRAWS),
        f"rewards={settings(name, structure=0.5)}",
    ),
    "train grpo, held out": lambda name: (
        *("train", "grpo", "model=shapeworld", "prompts=p.txt", DRAWS),
        f"rewards={settings('shapeworld', structure=0.5)}",
        f"held_out={json.dumps([name])}",
    ),
    "train ppo": lambda name: (
        *("train", "ppo", "init=shapeworld", "prompts=p.txt", DRAWS, f"rewards={settings(name)}"),
    ),
    "train dpo, rounds": lambda name: (
        *("train", "dpo", "model=shapeworld", "rounds.prompts=p.txt", f"rounds.{DRAWS}"),
        f"rounds.rewards={settings(name, structure=0.5)}",
    ),
    "train diffusion-dpo, rounds": lambda name: (
        *("train", "diffusion-dpo", "model=shapeworld", "rounds.prompts=p.txt"),
        f"rounds.rewards={settings(name)}",
    ),
    "train diffusion-dpo, rounds, held out": lambda name: (
        *("train", "diffusion-dpo", "model=shapeworld", "rounds.prompts=p.txt"),
        f"rounds.rewards={settings('shapeworld')}",
        f"rounds.held_out={json.dumps([name])}",
    ),
    "train diffusion-dpo, gradient": lambda name: (
        *("train", "diffusion-dpo", "model=shapeworld", "rounds.prompts=p.txt"),
        f"rounds.rewards={settings('shapeworld')}",
        f"judge.reward={name}",
    ),
}
NO_GRADIENT = "gives no gradient through"
# Where a kind comes to something else than elsewhere, and what.
OTHERWISE = {
    ("train grpo", "text"): "no reward looks at the pictures",
    ("train ppo", "text"): "no reward looks at the pictures",
    ("train dpo, rounds", "text"): "no reward looks at the pictures",
    ("train grpo, held out", "text"): None,  # accepted, and made at once: the run begins
    ("evaluate judges", "vlm folder and mode"): "names one question, and a judge is asked all",
    ("evaluate judges", "vlm endpoint"): "names one question, and a judge is asked all",
    ("train diffusion-dpo, gradient", "vlm folder"): NO_GRADIENT,
    ("train diffusion-dpo, gradient", "vlm folder and mode"): NO_GRADIENT,
    ("train diffusion-dpo, gradient", "vlm endpoint"): f"{NO_GRADIENT} the network",
    ("train diffusion-dpo, gradient", "remote"): f"{NO_GRADIENT} the network",
    ("train diffusion-dpo, gradient", "remote VLM"): f"{NO_GRADIENT} the network",
}


def rows(**row):
    with open("rows.yaml", "w") as file:
        json.dump({"row": row}, file)
    return "rows.yaml"


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Data of `evaluate judges`: a question about a picture."""
    folder = tmp_path_factory.mktemp("questions")
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    line = {"prompt": "a red circle", "question": "match", "image": "a.png", "label": True, "split": "test"}
    (folder / "judge.jsonl").write_text(json.dumps(line) + "\n")
    return folder


@pytest.fixture(autouse=True)
def files(reprise, tmp_path, questions):  # noqa: F811  `reprise` goes into the folder
    Image.new("RGB", (32, 32), "red").save("a.png")
    (tmp_path / "p.txt").write_text("a photo of a red circle\na photo of a blue star\n")
    (tmp_path / "judge.jsonl").write_text((questions / "judge.jsonl").read_text())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_name(check, stop_at, things, endpoint, place, kind):
    name, expected = KINDS[kind]
    expected = OTHERWISE.get((place, kind), expected)
    if expected is None:
        pytest.skip("accepted, and nothing is left to be made")

    def fill(text):
        return text.format(vlm=things.vlm, away=AWAY)

    if not isinstance(expected, str):
        expected = (expected[0], tuple(map(fill, expected[1])))
    words = [str(word).replace("ENDPOINT", endpoint.url) for word in PLACES[place](fill(name))]
    stop_at("rewards", SPARED)
    check(words, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_reads_rewrites(check, things, kind):
    """`--filter` of data rewrites: text rewards alone."""
    name, expected = KINDS[kind]
    if kind == "text":
        return
    if not isinstance(expected, str):
        expected = "reads pictures, not rewrites; take structure or length"
    if kind == "unknown":
        expected = "unknown reward 'imge-reward'; expected one of length, structure"
    name = name.format(vlm=things.vlm, away=AWAY)
    check(("data", "rewrites", "p.txt", "--rewriter", "reprompt", "--filter", name), expected)
