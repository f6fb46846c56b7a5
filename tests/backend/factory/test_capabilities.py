"""What the implementations of the registry declare that they can do, and whether they do it."""

import inspect
import json

import pytest
import torch

from reprise.backend.core.errors import BadInput, RepriseError, Unsupported
from reprise.backend.core.interfaces import Critic, Managed
from reprise.backend.core.types import (
    InitImage,
    Job,
    RendererCapabilities,
    RewardCapabilities,
    RewriterCapabilities,
)
from reprise.backend.factory import (
    RENDERERS,
    REWARDS,
    REWRITERS,
    TEXT_REWARDS,
    TRAINERS,
    RewardName,
    find_trainer,
    open_renderer,
    open_reward,
    open_rewriter,
    parse_renderer,
    parse_reward,
    parse_rewriter,
    picture_rewards,
    reward_spec,
)
from reprise.backend.renderers.settings import RendererSettings
from reprise.backend.rewards.shapeworld import ShapeWorldSoft
from reprise.backend.storage.cache import Cache

from ...fake_comfyui import FakeComfyUI
from ...fake_endpoint import GOOD, MODEL
from ...reward_server import clean, serving  # noqa: F401  clean: a fixture
from ..renderers.conftest import folders, pipelines  # noqa: F401  fixtures
from ..rewards.conftest import golden, installed, published  # noqa: F401  fixtures
from ..rewards.geneval.test_judge import FOLDER
from ..rewards.geneval.test_judge import models as geneval  # noqa: F401  a fixture
from ..rewriters.conftest import folder as rewriter  # noqa: F401  a fixture

# Renderers


@pytest.fixture
def renderer(things, folders):  # noqa: F811  the fixture
    """(line of the registry, settings, cache) -> its renderer."""
    server = FakeComfyUI()

    def made(line, cache=None, **settings):
        names = {"comfyui": f"comfyui:{things.flow}@{server.url}", "diffusers": str(folders("sd1"))}
        given = {"size": 64, **settings} if line == "diffusers" else settings
        return open_renderer(RendererSettings(name=names.get(line, line), **given), cache=cache)

    yield made
    server.stop()


class Looks:
    steps = frozenset({1})

    def __init__(self):
        self.seen = []

    def look(self, step, rows, previews):
        self.seen.append(tuple(previews.shape))
        return rows


@pytest.mark.parametrize("line", RENDERERS)
def test_a_renderer_does_what_it_declares(renderer, line, tmp_path):
    steps = {} if line == "comfyui" else {"steps": 2}
    made = renderer(line, Cache(tmp_path), **steps)
    able, jobs = made.capabilities, [Job("a photo of a red circle", 0)]
    assert isinstance(able, RendererCapabilities) and isinstance(
        type(made).capabilities, RendererCapabilities
    )
    (image,) = made.render(jobs).images
    assert bool(list(tmp_path.glob("*/*.png"))) is able.keeps_pictures
    looks = Looks()
    try:
        made.render(jobs, looks)
        assert able.previews and looks.seen
    except Unsupported:
        assert not able.previews
    over = [Job(jobs[0].prompt, 1, InitImage(image, 0.5))]
    try:
        assert made.render(over).images[0].shape == image.shape and able.image_to_image
    except Unsupported:
        assert not able.image_to_image
    assert (made.model is not None) is able.weights is not able.elsewhere or line == "fake"
    if made.model is not None:
        made.model.to("cpu")
    assert isinstance(made.fingerprint, str) and made.steps >= 1


def test_what_a_pipeline_cannot_do_shows_once_it_is_open(folders):  # noqa: F811
    able = open_renderer(RendererSettings(name=str(folders("pixart")), steps=2)).capabilities
    assert not able.image_to_image and able.previews


@pytest.mark.parametrize("line", RENDERERS)
def test_a_renderer_takes_the_settings_that_it_declares(line):
    made = parse_renderer({"comfyui": "comfyui:x@http://h", "diffusers": "owner/model"}.get(line, line))
    able = made.capabilities
    known = set(RendererSettings.model_fields) - {"name", "batch"}
    assert able.settings <= known and able.fixed.keys() <= known
    import reprise.backend.factory.renderers as factory

    makes = factory.resolve("renderer", RENDERERS, line)
    parameters = inspect.signature(makes).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()) and line != "comfyui":
        assert able.settings <= parameters.keys()
    assert able.keeps_pictures is ("cache" in parameters) or line.endswith("styled")
    if not able.fixed:
        return
    for key, value in able.fixed.items():
        factory.check_renderer(RendererSettings(name=line, **{key: value}))
        with pytest.raises(BadInput, match=f"draws with {key}={value} alone, got {value + 8}"):
            factory.check_renderer(RendererSettings(name=line, **{key: value + 8}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "fake", "guidance": 3.0}, "renderer 'fake' does not take guidance"),
        ({"name": "fake", "lora": "x.safetensors"}, "renderer 'fake' does not take lora"),
        ({"name": "shapeworld", "lora": "no/where.safetensors"}, "there is no LoRA no/where.safetensors"),
    ],
)
def test_other_settings_are_refused(settings, says):
    from reprise.backend.factory import check_renderer

    with pytest.raises(BadInput, match=says):
        check_renderer(RendererSettings(**settings))


@pytest.mark.parametrize("line", sorted(RENDERERS.keys() - {"comfyui", "diffusers"}))
def test_the_embedded_roles_know_the_renderers_of_their_world(line):
    assert parse_renderer(line).capabilities.shapeworld
    assert parse_rewriter(None, line).kind == "reprompt"


def test_and_no_others(things):
    for name in ("owner/model", f"comfyui:{things.flow}@http://127.0.0.1:9"):
        with pytest.raises(BadInput, match="needs a --rewriter: the embedded one knows coloured shapes only"):
            parse_rewriter(None, name)


# Rewriters


@pytest.fixture
def written(endpoint, rewriter):  # noqa: F811  the fixture
    def made(line):
        name = {"chat": f"chat:{MODEL}@{endpoint.url}", "promptist": f"promptist:{rewriter}"}.get(line, line)
        return open_rewriter(name)

    return made


@pytest.mark.parametrize("line", REWRITERS)
def test_a_rewriter_does_what_it_declares(written, endpoint, line):
    made = written(line)
    able, prompt = made.capabilities, "a photo of a red circle"
    assert isinstance(able, RewriterCapabilities) and made.name == line
    assert made.fingerprint is None or isinstance(made.fingerprint, str)
    (plain,) = made.rewrite([prompt])[0]
    asked = [json.dumps(request.body) for request in endpoint.requests]
    (mended,) = made.rewrite([prompt], critiques=["the circle is blue"])[0]
    again = [json.dumps(request.body) for request in endpoint.requests][len(asked) :]
    assert able.reads_critiques is (plain.prompt != mended.prompt or asked != again)
    assert able.reasons is bool(plain.reason), plain
    assert able.describes is hasattr(made, "describe")
    assert able.elsewhere is bool(asked)
    assert able.weights is (isinstance(made, Managed) and made.model is not None)
    if able.elsewhere:
        assert plain.prompt in GOOD


# Rewards


@pytest.fixture
def judge(things, installed, geneval):  # noqa: F811  fixtures
    """line of the registry -> its reward, with tiny weights."""
    with serving(ShapeWorldSoft()) as server:

        def made(line):
            names = {"vlm": f"vlm:{things.vlm}", "remote": f"remote:shapeworld@{server.url}"}
            folder = geneval / "judges" / FOLDER if line.startswith("geneval") else None
            return open_reward(names.get(line, line), device="cpu", folder=folder)

        yield made


@pytest.mark.parametrize("line", REWARDS)
def test_a_reward_does_what_it_declares(judge, line):
    made = judge(line)
    prompts = ["a photo of a dog" if line.startswith("geneval") else "a photo of a red circle"] * 2
    able = made.capabilities
    assert isinstance(able, RewardCapabilities) and made.spec.reads == "images"
    assert made.fingerprint is None or isinstance(made.fingerprint, str)
    assert isinstance(made, Managed) and made.patcher is None
    assert able.weights is isinstance(made.model, torch.nn.Module)
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    assert len(made.score(images, prompts)) == 2
    if isinstance(made, Critic):
        assert len(made.criticize(images, prompts)) == 2
    if able.gradient:
        pixels = torch.rand(1, 3, 224, 224).requires_grad_()
        made.model.requires_grad_(False)
        made.rate(pixels, prompts[:1]).sum().backward()
        assert pixels.grad is not None and pixels.grad.abs().max() > 0
    else:
        assert not hasattr(made, "rate") or line == "vlm"
    name = {"vlm": f"vlm:{line}", "remote": "remote:shapeworld@http://h"}.get(line, line)
    said, spec = reward_spec(name), made.spec
    assert (said.low, said.high, said.higher_is_better) == (spec.low, spec.high, spec.higher_is_better)
    if line in picture_rewards():
        assert spec.name == line and RewardName(line, line).capabilities == able
    else:
        assert not RewardName(line, line).capabilities.gradient


@pytest.mark.parametrize("line", TEXT_REWARDS)
def test_text_rewards_read_rewrites(line):
    assert open_reward(line).spec.reads == "rewrites" == reward_spec(line).reads
    assert parse_reward(line, reads="rewrites") == parse_reward(line, reads=None)
    with pytest.raises(Unsupported, match="reads rewrites"):
        parse_reward(line)


# Trainers


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_says_whether_processes_may_share_it(name):
    trainer = find_trainer(name)
    assert trainer.several is (name in ("sft", "grpo")) and trainer.config.model_fields
    with pytest.raises(RepriseError, match="did you mean"):
        find_trainer(f"{name}x")
