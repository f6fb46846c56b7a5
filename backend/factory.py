"""Names on the command line -> rewriters, renderers and judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import BadInput, UnknownName, Unsupported
from .core.model_files import find_model, installed_models
from .core.registry import RENDERERS, REWARDS, REWRITERS, resolve
from .renderers.settings import RendererSettings

if TYPE_CHECKING:
    from .core.interfaces import Renderer, Reward, Rewriter
    from .storage.cache import Cache


DEFAULT_RENDERER = DEFAULT_JUDGE = "shapeworld"
DEFAULT_REWRITER = "reprompt"
# Renderers for whose pictures the embedded rewriter and judge are made.
EMBEDDED_WORLD = (
    "shapeworld",
    "shapeworld-sd",
    "shapeworld-masked",
    "shapeworld-styled",
    "shapeworld-sd-styled",
    "fake",
)
REMOTE = "remote:"  # what a reward's name begins with that another process runs
VLM = "vlm:"  # and one that any vision-language model gives
WEIGHTS = ("reprompt", "prip", "promptist")  # rewriters of which there may be many folders


def find_renderer(
    name: str, steps: int | None = None, cache: Cache | None = None, lora: Path | None = None
) -> Callable[[], Renderer]:
    """What makes the renderer of a registry name, a folder in diffusers' layout, a Hugging Face name
    "owner/model", or comfyui:WORKFLOW.json@URL. The name is checked here; weights are read, and servers
    asked, when it is called. `cache` gets each picture of a ComfyUI server as soon as it is there; what
    others draw comes in one piece, and is the caller's to keep.

    Raises UnknownName with the near match, BadInput for a workflow that cannot be one.
    """
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    kind, colon, rest = name.partition(":")
    if lora is not None:
        if kind in ("comfyui", "fake"):
            raise BadInput(f"--lora is for pipelines of diffusers; --renderer {kind} draws otherwise")
        options["lora"] = check_file(lora, "LoRA")
    if kind == "comfyui":
        from .renderers.comfyui.renderer import parse_name
        from .renderers.comfyui.workflow import load_workflow

        file, urls, names = parse_name(rest)
        workflow = load_workflow(file, names, steps)
        return lambda: resolve("renderer", RENDERERS, kind)(workflow, urls, cache=cache)
    if name in RENDERERS and name != "diffusers":
        return lambda: resolve("renderer", RENDERERS, name)(**options)
    if "/" in name or Path(name).is_dir():
        return lambda: resolve("renderer", RENDERERS, "diffusers")(name, **options)
    if name == "diffusers":
        raise BadInput("--renderer diffusers names no model; give its folder or Hugging Face name instead")
    raise UnknownName("renderer", name, RENDERERS.keys() - {"diffusers", "comfyui"})


def check_file(path: Path, kind: str) -> Path:
    if not path.is_file():
        raise BadInput(f"there is no {kind} {path}; name a .safetensors file")
    return path


def find_rewriter(name: str | None, renderer: str = DEFAULT_RENDERER) -> Callable[[], Rewriter]:
    """What makes the rewriter of a registry name, a folder of weights, the name of one under
    models/reprise/rewriters or refiners, KIND:FOLDER where the kind does not follow from the weights, or
    chat:MODEL@URL; without a name the embedded one, for a renderer whose pictures it knows. Raises
    UnknownName with the near match."""
    if name is None:
        if renderer not in EMBEDDED_WORLD:
            raise BadInput(
                f"--renderer {renderer} needs a --rewriter: the embedded one knows coloured "
                "shapes only; take none, a folder of weights, or chat:MODEL@URL"
            )
        name = DEFAULT_REWRITER
    kind, colon, rest = name.partition(":")
    if name == "chat" or (colon and (kind == "chat" or "//" in rest)):
        return _find_chat(kind, rest)
    if colon and kind in WEIGHTS:
        return _find_weights(kind, rest)
    if name == "promptist":
        return _find_weights(name, "")
    if name in REWRITERS:
        return lambda: resolve("rewriter", REWRITERS, name)()
    return _find_weights(None, name)


def _find_weights(kind: str | None, name: str) -> Callable[[], Rewriter]:
    """A model in a folder, by its path or name, or of a hub's name; without a kind, the one that it says."""
    from .rewriters.prip.rewriter import is_refiner

    if not name:
        raise BadInput(f"--rewriter {kind} names no model; expected {kind}:FOLDER")
    folder = find_model("rewriters", name) or find_model("refiners", name)
    if folder is None and not ("/" in name or Path(name).is_dir()):
        kinds = {"prip": ("refiners",), "reprompt": ("rewriters",)}
        known = [
            one for each in kinds.get(kind or "", ("rewriters", "refiners")) for one in installed_models(each)
        ]
        if kind and not known:
            raise BadInput(f"there is no model {name!r}, and none is installed; expected {kind}:FOLDER")
        raise UnknownName("model" if kind else "rewriter", name, known if kind else [*REWRITERS, *known])
    where = str(folder or name)
    made_as = kind or ("prip" if is_refiner(Path(where)) else "reprompt")
    return lambda: resolve("rewriter", REWRITERS, made_as)(where)


def _find_chat(kind: str, rest: str) -> Callable[[], Rewriter]:
    """A model behind an endpoint: `rest` is MODEL@URL, where the model's name may hold a colon."""
    if kind not in ("chat", "http", "https"):
        raise UnknownName("kind of rewriter", kind, ["chat"])
    model, at, url = rest.partition("@http")
    if kind != "chat" or not (model.strip() and at):
        raise BadInput(
            "expected --rewriter chat:MODEL@URL, for example "
            f"chat:qwen3:8b@http://127.0.0.1:11434/v1, got {kind}:{rest[:80]}"
        )
    # Nothing is sent before it rewrites, so a wrong address is refused at once.
    made = resolve("rewriter", REWRITERS, "chat")("http" + url, model)
    return lambda: made


def make_reward(name: str) -> Reward:
    """A reward that reads pictures. Raises Unsupported for one that reads rewrites."""
    if name.startswith(REMOTE):
        return _connect(name)
    if name.startswith(VLM):
        return resolve("reward", REWARDS, "vlm")(name.removeprefix(VLM))
    reward = resolve("reward", REWARDS, name)()
    if reward.spec.reads != "images":
        raise Unsupported(f"reward {name!r} reads rewrites, not pictures; it belongs to training")
    return reward


def reward_mark(name: str) -> str:
    """What decides the scores of a reward of this name, without loading it. Raises as `make_reward`."""
    if not name.startswith(VLM):
        return name
    from .rewards.vlm.judge import fingerprint_of

    return fingerprint_of(name.removeprefix(VLM))


def check_judge(name: str) -> None:
    """Raises what `make_reward` raises for a name that is none, without loading it."""
    parse_weights([name])
    reward_mark(name)


def _connect(name: str) -> Reward:
    """A reward of `reprise serve rewards` somewhere: remote:NAME@URL."""
    from .rewards.remote import connect

    served, at, url = name.removeprefix(REMOTE).rpartition("@http")
    if not (served.strip() and at):
        raise BadInput("expected remote:NAME@URL, for example remote:image-reward@http://127.0.0.1:8009")
    return connect("http" + url, served.strip())


def parse_weights(words: Sequence[str]) -> dict[str, float]:
    """["NAME=WEIGHT", "NAME", …] -> {name: weight}; a weight left out is 1."""
    weights: dict[str, float] = {}
    for word in words:
        name, equals, text = word.partition("=")
        try:
            weight = float(text) if equals else 1.0
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise BadInput(f"--reward {word}: expected NAME=WEIGHT with a weight above 0")
        if name not in REWARDS and not name.startswith((REMOTE, VLM)):
            raise UnknownName("reward", name, REWARDS)
        if name in weights:
            raise BadInput(f"--reward {name} is given twice; name each reward once")
        weights[name] = weight
    return weights


def make_judge(judge: str | None, rewards: dict[str, float], renderer: str = DEFAULT_RENDERER) -> Reward:
    """What selects and criticises: `judge`, or the weighted mix of `rewards`, or both.

    With both, the judge joins the mix with weight 1 and comes first, so that the critique is its.
    With neither, the embedded judge, for a renderer whose pictures it can read.
    """
    weights = dict(rewards)
    if judge is None and not weights:
        if renderer not in EMBEDDED_WORLD:
            raise BadInput(
                f"--renderer {renderer} needs a --judge or --reward: the embedded judge reads "
                "ShapeWorld pictures only; `reprise models` lists those for photographs"
            )
        judge = DEFAULT_JUDGE
    if judge is not None:
        weights = {judge: weights.pop(judge, 1.0), **weights}
    if len(weights) == 1:  # a weight alone changes nothing
        return make_reward(next(iter(weights)))
    from .rewards.mix import mix_rewards

    return mix_rewards([(make_reward(name), weight) for name, weight in weights.items()])


OF_A_MODEL = {"diffusers", "comfyui"}  # not to be named alone


FIXED = {"size": "SIZE", "max_sequence_length": "TEXT_LENGTH"}  # what a renderer of ours may have of its own


def open_renderer(settings: RendererSettings, device: str = "auto") -> Renderer:
    """One that computes here does so on `device`.

    Raises UnknownName, and BadInput for a setting that this renderer does not have.
    """
    name = settings.name
    given: dict[str, Any] = settings.model_dump(exclude={"name", "batch"}, exclude_defaults=True)
    if name.startswith("comfyui:"):
        from .renderers.comfyui.renderer import parse_name
        from .renderers.comfyui.workflow import load_workflow

        _refuse_others(name, given, {"steps"})
        file, urls, names = parse_name(name.partition(":")[2])
        workflow = load_workflow(file, names, settings.steps)
        return resolve("renderer", RENDERERS, "comfyui")(workflow, urls)
    if name in RENDERERS and name not in OF_A_MODEL:
        made = resolve("renderer", RENDERERS, name)
        known = signature(made).parameters
        takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known.values())
        for key, attribute in FIXED.items():  # not to be passed on, where it is the same
            own = getattr(made, attribute, None)
            if own is not None and given.pop(key, own) != own:
                raise BadInput(
                    f"renderer {name!r} draws with {key}={own} alone, got "
                    f"{getattr(settings, key)}; leave it out"
                )
        if not takes_all:
            _refuse_others(name, given, set(known))
        if device != "auto" and (takes_all or "device" in known):
            given["device"] = device
        try:
            return made(**given)
        except TypeError as error:
            raise BadInput(f"renderer {name!r} sets one of {', '.join(given)} by itself: {error}") from error
    if "/" in name or Path(name).is_dir():
        return resolve("renderer", RENDERERS, "diffusers")(name, device=device, **given)
    raise UnknownName("renderer", name, RENDERERS.keys() - OF_A_MODEL)


def _refuse_others(name: str, given: dict[str, Any], known: set[str]) -> None:
    for key in given.keys() - known:
        raise BadInput(f"renderer {name!r} does not take {key}; leave it out of the renderer's settings")


def check_rewards(rewards: Iterable[str], held_out: Iterable[str]) -> None:
    """Raises ValueError for rewards that are unknown, or both trained on and held out."""
    for name in (*rewards, *held_out):
        if _kind(name) not in REWARDS:
            raise ValueError(str(UnknownName("reward", name, REWARDS)))
    both = sorted(set(rewards) & set(held_out))
    if both:
        raise ValueError(f"reward {both[0]!r} is trained on and held out; take it out of one of the two")


def open_reward(name: str, device: str = "auto") -> Any:
    """A reward by its name, in the registry or vlm:FOLDER, a judge whose name holds its model's. One that
    computes on a `device` is told which, where it is not "auto"."""
    kind = _kind(name)
    made = resolve("reward", REWARDS, kind)
    given = {"device": device} if device != "auto" and "device" in signature(made).parameters else {}
    return made(**given) if kind == name else made(name.removeprefix(VLM), **given)


def _kind(name: str) -> str:
    return VLM.removesuffix(":") if name.startswith(VLM) else name
