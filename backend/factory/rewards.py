"""A name -> a reward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput, RepriseError, UnknownName, Unsupported
from ..core.registry import REWARDS, TEXT_REWARDS, resolve
from ..core.types import RewardSpec
from .names import RewardName, split_name
from .renderers import DEFAULT_RENDERER, check_renderer, parse_renderer

if TYPE_CHECKING:
    from ..core.interfaces import Reward
    from ..renderers.settings import RendererSettings

DEFAULT_JUDGE = "shapeworld"
OF_A_MODEL = {"vlm", "remote"}  # not to be named alone


def picture_rewards() -> tuple[str, ...]:
    """Names of the rewards that look at pictures and need no model behind their name."""
    return tuple(name for name in REWARDS if name not in OF_A_MODEL)


def parse_reward(name: str, reads: str | None = "images") -> RewardName:
    """What a name means: a line of the registry, vlm:FOLDER or vlm:MODEL@URL with #MODE after it, or
    remote:NAME@URL, a reward that `reprise serve rewards` runs.

    Nothing is loaded and nobody is asked. `reads` says what the reward is to read, "images" or "rewrites";
    None: either. Raises UnknownName with the near match, BadInput, CheckpointError for a folder that is not
    there, Unsupported for a reward that reads something else.
    """
    kind, model, url = split_name(name)
    if kind == "vlm" or name == "vlm":
        found = _vlm(name)
    elif kind == "remote" or name == "remote":
        found = _remote(name, model, url)
    elif url:
        raise UnknownName("kind of reward", kind, OF_A_MODEL)
    elif name in REWARDS or name in TEXT_REWARDS:
        found = RewardName(name, name)
    else:
        known = {"images": REWARDS, "rewrites": TEXT_REWARDS}.get(reads or "", {**REWARDS, **TEXT_REWARDS})
        raise UnknownName("reward", name, known.keys() - OF_A_MODEL)
    if reads == "images" and found.kind in TEXT_REWARDS:
        raise Unsupported(f"reward {name!r} reads rewrites, not pictures; name one that looks at pictures")
    if reads == "rewrites" and found.kind not in TEXT_REWARDS:
        raise Unsupported(f"reward {name!r} reads pictures, not rewrites; take {' or '.join(TEXT_REWARDS)}")
    return found


def open_reward(
    name: str | RewardName, device: str = "auto", dtype: str | None = None, folder: Path | None = None
) -> Any:
    """The reward of a name. One with weights computes on `device`, by default a GPU if there is one, in
    `dtype`, a torch name; a published one looks for its files in `folder`.

    Raises what `parse_reward` does, CheckpointError, and EndpointError where a reward server is not there.
    """
    name = name if isinstance(name, RewardName) else parse_reward(name, reads=None)
    if name.kind in TEXT_REWARDS:
        return resolve("reward", TEXT_REWARDS, name.kind)()
    made = resolve("reward", REWARDS, name.kind)
    if name.kind == "remote":
        return made(name.url, name.model)
    given = {"device": None if device == "auto" else device, "dtype": dtype}
    if name.kind == "vlm":
        return made(name.text.partition(":")[2], **given)
    return made(*filter(None, [folder]), **(given if made.capabilities.weights else {}))


def open_rewards(names: Iterable[str], device: str = "auto") -> dict[str, Any]:
    """Several, by their names. Servers are asked before any model is loaded."""
    parsed = [parse_reward(name, reads=None) for name in dict.fromkeys(names)]
    made = {one.text: open_reward(one, device) for one in sorted(parsed, key=lambda one: not one.url)}
    return {one.text: made[one.text] for one in parsed}


def parse_weights(words: Sequence[str]) -> dict[str, float]:
    """["NAME=WEIGHT", "NAME", …] -> {name: weight}; a weight left out is 1. Raises as `parse_reward`."""
    weights: dict[str, float] = {}
    for word in words:
        name, equals, text = word.rpartition("=") if "=" in word else (word, "", "")
        try:
            weight = float(text) if equals else 1.0
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise BadInput(f"--reward {word}: expected NAME=WEIGHT with a weight above 0")
        parse_reward(name)
        if name in weights:
            raise BadInput(f"--reward {name} is given twice; name each reward once")
        weights[name] = weight
    return weights


def parse_judge(
    judge: str | None, rewards: Mapping[str, float], renderer: str = DEFAULT_RENDERER
) -> dict[RewardName, float]:
    """What selects and criticises, with weights: `judge`, or the mix of `rewards`, or both.

    With both, the judge joins the mix with weight 1 and comes first, so that the critique is its.
    With neither, the embedded judge, for a `renderer` of pictures that it can read. Raises as `parse_reward`.
    """
    weights = dict(rewards)
    if judge is None and not weights:
        if not parse_renderer(renderer).capabilities.shapeworld:
            raise BadInput(
                f"--renderer {renderer} needs a --judge or --reward: the embedded judge reads "
                "ShapeWorld pictures only; `reprise models` lists those for photographs"
            )
        judge = DEFAULT_JUDGE
    if judge is not None:
        weights = {judge: weights.pop(judge, 1.0), **weights}
    return {parse_reward(name): weight for name, weight in weights.items()}


def open_judge(names: Mapping[RewardName, float], device: str = "auto") -> Reward:
    """The one reward of `parse_judge`, or the mix of them. Raises as `open_reward`."""
    from ..rewards.mix import mix_rewards

    made = {one: open_reward(one, device) for one in sorted(names, key=lambda one: not one.url)}
    if len(names) == 1:  # a weight alone changes nothing
        return made.popitem()[1]
    return mix_rewards([(made[one], weight) for one, weight in names.items()])


def reward_mark(name: str | RewardName) -> str:
    """What decides the scores of a reward of this name, without loading it. Raises as `parse_reward`."""
    name = name if isinstance(name, RewardName) else parse_reward(name)
    if name.kind != "vlm":
        return name.text
    from ..rewards.vlm.judge import fingerprint_of

    return fingerprint_of(name.text.partition(":")[2])


def reward_spec(name: str) -> RewardSpec | None:
    """What a reward's numbers mean, as far as its name says it, also where its folder or server is gone; None
    for a mix and for names that are not ours. A server's reward has the range that it has here."""
    if "+" in name:
        return None
    kind, model, url = split_name(name)
    if kind == "vlm":
        return RewardSpec(name, 0.0, 1.0)  # of all its modes
    if kind == "remote" and url:
        return reward_spec(model)
    table = REWARDS if name in REWARDS else TEXT_REWARDS
    if name not in table or name in OF_A_MODEL:
        return None
    return resolve("reward", table, name).spec


def check_differentiable(name: str) -> None:
    """Raises ValueError, for pydantic, for a reward whose scores have no gradient through the pixels, such as
    one that another process runs, and where there is no such reward."""
    try:
        found = parse_reward(name)
        able = found.capabilities.gradient
    except RepriseError as error:
        raise ValueError(str(error)) from error
    if not able:
        why = " through the network" if found.url else " through pixels"
        raise ValueError(f"reward {name!r} gives no gradient{why}; take another, such as image-reward")


def check_roles(
    renderer: RendererSettings, rewards: Iterable[str], held_out: Iterable[str], reads: str | None = None
) -> None:
    """What a training's settings say of who draws and who judges; `reads` as in `parse_reward`. Raises
    ValueError, for pydantic, where there is no such renderer or reward, a reward is both trained on and held
    out, or none that is trained on looks at pictures."""
    try:
        check_renderer(renderer)
        for name in (*rewards, *held_out):
            parse_reward(name, reads)
    except RepriseError as error:
        raise ValueError(str(error)) from error
    both = sorted(set(rewards) & set(held_out))
    if both:
        raise ValueError(f"reward {both[0]!r} is trained on and held out; take it out of one of the two")
    if not set(rewards) - TEXT_REWARDS.keys():
        raise ValueError("no reward looks at the pictures; add one, such as image-reward: 1.0")


def _vlm(name: str) -> RewardName:
    """A vision-language model: vlm:FOLDER[#MODE] or vlm:MODEL@URL[#MODE]."""
    from ..net.credentials import check_url
    from ..rewards.vlm.judge import find_folder, parse_source

    where, _ = parse_source(name.partition(":")[2])
    model, at, url = where.rpartition("@http")
    if at:
        return RewardName(name, "vlm", model.strip(), check_url("http" + url))
    find_folder(where)
    return RewardName(name, "vlm", where)


def _remote(name: str, model: str, url: str) -> RewardName:
    """A reward of `reprise serve rewards`."""
    from ..net import credentials

    if not (model and url):
        raise BadInput("expected remote:NAME@URL, for example remote:image-reward@http://127.0.0.1:8009")
    return RewardName(name, "remote", model, credentials.check_url(url, credentials.REWARDS))
