"""Every place that takes a renderer's name, with every kind of name: it comes to the point where the renderer
is made, or is refused in one line."""

import json

import pytest

from reprise.backend.renderers.comfyui.workflow import Workflow

from .conftest import AWAY

# As in `test_reward_places`.
KINDS = {
    "registry": ("shapeworld-sd", ("shapeworld-sd", ())),
    "folder": ("{pipeline}", ("diffusers", ("{pipeline}",))),
    "hub name": ("owner/model", ("diffusers", ("owner/model",))),
    "comfyui": ("comfyui:{flow}@{away}", ("comfyui", ("a workflow", "['{away}']"))),
    "two servers": ("comfyui:{flow}@{away},{away}9", ("comfyui", ("a workflow", "['{away}', '{away}9']"))),
    "unknown": ("shapeworld-s", "unknown renderer 'shapeworld-s'; did you mean 'shapeworld"),
    "unknown kind": ("comfi:{flow}@{away}", "unknown kind of renderer 'comfi'; did you mean 'comfyui'"),
    "no model": ("diffusers", "names no model; give its folder or Hugging Face name"),
    "no address": ("comfyui:{flow}", "expected comfyui:WORKFLOW.json@URL"),
    "no workflow": ("comfyui:no/where.json@{away}", "no/where.json"),
    "unknown option": ("comfyui:{flow},promt=6.text@{away}", "did you mean 'prompt'"),
}
JUDGED = ("--judge", "shapeworld", "--rewriter", "none")
PLACES = {
    "render": lambda name: ("render", "a red circle", "--renderer", name, *JUDGED),
    "data judge": lambda name: ("data", "judge", "p.txt", "--renderer", name, "--reward", "shapeworld"),
    "data pictures": lambda name: ("data", "pictures", "p.txt", "--renderer", name, "--reward", "shapeworld"),
    "evaluate shapeworld": lambda name: ("evaluate", "shapeworld", "--renderer", name),
    "evaluate rewriters": lambda name: ("evaluate", "rewriters", "a=none", "--renderer", name),
    "evaluate search": lambda name: ("evaluate", "search", rows(), "--renderer", name),
    "lab bench parm": lambda name: ("lab", "bench", "parm", "--renderer", name),
    "train grpo": lambda name: (
        *("train", "grpo", "model=shapeworld", "prompts=p.txt", f"renderer.name={json.dumps(name)}"),
        'rewards={"shapeworld": 1, "structure": 1}',
    ),
    "train ppo": lambda name: (
        *("train", "ppo", "init=shapeworld", "prompts=p.txt", f"renderer.name={json.dumps(name)}"),
        'rewards={"shapeworld": 1}',
    ),
    "train dpo, rounds": lambda name: (
        *("train", "dpo", "model=shapeworld", "rounds.prompts=p.txt"),
        f"rounds.renderer.name={json.dumps(name)}",
        'rounds.rewards={"shapeworld": 1, "structure": 1}',
    ),
}


def rows():
    with open("rows.yaml", "w") as file:
        json.dump({"row": {}}, file)
    return "rows.yaml"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_name(check, stop_at, things, tmp_path, monkeypatch, place, kind):
    (tmp_path / "p.txt").write_text("a photo of a red circle\na photo of a blue star\n")
    monkeypatch.setattr(Workflow, "__str__", lambda self: "a workflow")
    name, expected = KINDS[kind]

    def fill(text):
        return text.format(pipeline=things.pipeline, flow=things.flow, away=AWAY)

    if not isinstance(expected, str):
        expected = (expected[0], tuple(map(fill, expected[1])))
    words = PLACES[place](fill(name))
    stop_at("renderers", ("fake",))
    check(words, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shapeworld-sd", None),
        ("{pipeline}", "no model_index.json"),
        ("fake", "renderer 'fake' has no weights that can be trained"),
        ("comfyui:{flow}@{away}", "has no weights that can be trained"),
        ("shapeworld-s", "did you mean"),
    ],
)
def test_what_is_trained(things, name, expected):
    """`model` of train diffusion-dpo: what draws here, with weights."""
    from reprise.backend.core.errors import RepriseError
    from reprise.backend.factory import source_of

    name = name.format(pipeline=things.pipeline, flow=things.flow, away=AWAY)
    if expected is None:
        source, length = source_of(name)
        assert source.pipeline_class == "StableDiffusionPipeline" and length is None
        return
    with pytest.raises(RepriseError, match=expected) as caught:
        source_of(name)
    assert caught.value.exit_code == 2
