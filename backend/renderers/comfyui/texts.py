"""The texts of a workflow: from a sampler along its positive conditioning to the text encode nodes, and from
there to where the text stands.

Which of two prompts a node passes on is carried along the way, as "positive" or "negative": outputs have no
names in a graph. A server's `/object_info` has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .graph import Graph, Socket, is_link, may_hold, value_at

OutputNames = Callable[[str], Sequence[str]]  # of a class; empty where they are not known

# The texts of encode nodes, of nodes that hold a text, and of samplers that encode by themselves.
TEXTS = (
    "text",
    "prompt",
    "first_prompt",
    "user_prompt",
    "clip_l",
    "clip_g",
    "text_l",
    "text_g",
    "t5xxl",
    "bert",
    "mt5xl",
    "llama",
    "caption",
    "positive",
    "value",
    "string",
)
# Links that lead from a node of unknown class to anything but conditioning.
NO_CONDITIONING = (
    "model",
    "clip",
    "vae",
    "image",
    "latent",
    "samples",
    "control_net",
    "mask",
    "style_model",
    "uncond",
)
# They make the text that is drawn from another one. A job brings that text itself, so they are skipped.
REWRITER_NODES = ("RepriseRewriter", "RepriseRefiner")
SIDES = {"positive": "negative", "negative": "positive"}
# Words of an input's name: what holds a text, and what does not although it is one to the server.
_WORDS = re.compile(r"(^|[^a-z])(text|prompt|string|caption|description|tag|wildcard|populated)s?([^a-z]|$)")
_CONDITIONING = re.compile(r"(^|[^a-z])(text|prompt|cond|conditioning)s?([^a-z]|$)")
_NO_TEXT = re.compile(
    r"(^|[_ ])(delimiter|separator|file|filename|path|folder|dir|directory|url|host|model|encoder|name|type|"
    r"mode|format|device|dtype|precision|language|task|preset|font|colou?r|style|action|log|debug|key|id|"
    r"method|sampler|scheduler|normalization|interpretation|select|upload|lora|vae|provider|extension|unit)"
    r"([_ 0-9]|$)"
)
_SETTINGS = {"yes", "no", "enable", "disable", "true", "false", "auto", "none", "default", "on", "off"}
_FILE = re.compile(
    r"[^\n]*\.(safetensors|ckpt|pth?|bin|sft|gguf|onnx|txt|json|ya?ml|csv|png|jpe?g|webp|gif|mp4|webm|wav|mp3)"
)


@dataclass
class Conditioning:
    """What a sampler's positive conditioning is made of: text encode nodes, each with the side of its texts
    that counts, and the nodes that zero what reaches them."""

    encoders: list[tuple[str, str]] = field(default_factory=list)
    zeroed: list[str] = field(default_factory=list)


def no_names(kind: str) -> Sequence[str]:
    return ()


def text_keys(inputs: Mapping[str, Any], side: str = "positive") -> list[str]:
    """The inputs that hold, or may be linked to, a text of one side: those that say so, else those of the
    usual names, else those named after a text."""
    able = [key for key, value in inputs.items() if may_hold(value, str) and not _is_name(key, value)]
    groups = (
        [key for key in able if side in key.lower()],
        [key for key in able if key.lower() in TEXTS and key != SIDES[side]],
        [key for key in able if _WORDS.search(key.lower()) and SIDES[side] not in key.lower()],
    )
    found = next(filter(None, groups), [])
    return sorted(found, key=lambda key: TEXTS.index(key) if key in TEXTS else len(TEXTS))


def _is_name(key: str, value: Any) -> bool:
    """Whether an input holds the name of a file or a model, a delimiter or a setting: no prompt."""
    if _NO_TEXT.search(key.lower()):
        return True
    return isinstance(value, str) and bool(_FILE.fullmatch(value.strip().lower()))


def texts_of(
    graph: Graph, sampler: str, names: OutputNames = no_names, side: str = "positive"
) -> list[Socket]:
    """The inputs that hold the texts a sampler draws, or those it draws away from; behind a rewriter, the
    encoder's own input."""
    inputs = [
        (Socket(node, key), of)
        for node, of in conditioning(graph, sampler, names, side).encoders
        for key in text_keys(graph[node]["inputs"], of)
    ]
    return [origin for socket, of in inputs for origin in text_sockets(graph, socket, of)]


def text_at(graph: Graph, socket: Socket, side: str = "positive") -> str:
    """The text at an input, also a linked one; behind a rewriter, the rewriter's input."""
    value = value_at(graph, socket)
    for _ in graph:
        if not is_link(value):
            break
        inputs = graph[value[0]]["inputs"]
        value = next((inputs[key] for key in text_keys(inputs, side)), "")
    return value if isinstance(value, str) else ""


def text_sockets(graph: Graph, socket: Socket, side: str = "positive") -> list[Socket]:
    """The inputs that hold the text of an input: itself, or those of the nodes it is linked from. Of several
    those that are not blank. Where a text is made from something else, as from a picture or a file, it is the
    input itself, which a job sets in the text's place."""
    origins, seen, todo = [], set(), [socket]
    while todo:  # a loop, not a recursion: graphs may be thousands of nodes deep
        one = todo.pop()
        value = value_at(graph, one)
        if isinstance(value, str) or graph[value[0]]["class_type"] in REWRITER_NODES:
            origins.append(one)
        elif value[0] not in seen:
            seen.add(value[0])
            held = _texts_behind(graph[value[0]]["inputs"], side)
            todo += [Socket(value[0], key) for key in reversed(held)]
    return [origin for origin in origins if text_at(graph, origin, side).strip()] or origins[:1] or [socket]


def _texts_behind(inputs: Mapping[str, Any], side: str) -> list[str]:
    """The inputs that a node may make its text from."""
    if any(side in key.lower() for key in inputs):
        return text_keys(inputs, side)
    return [
        key
        for key, value in inputs.items()
        if may_hold(value, str)
        and not _is_name(key, value)
        and SIDES[side] not in key.lower()
        and not (is_link(value) and key.startswith(NO_CONDITIONING))
        and not (isinstance(value, str) and value.strip().lower() in _SETTINGS)
        and (value != "" or key.lower() in TEXTS)
    ]


def conditioning(
    graph: Graph, sampler: str, names: OutputNames = no_names, side: str = "positive"
) -> Conditioning:
    """What is behind a sampler's positive conditioning, or its negative one."""
    found, seen, todo = Conditioning(), set(), [(sampler, 0, side)]
    while todo:
        name, slot, side = todo.pop(0)
        if (name, slot, side) in seen:
            continue
        seen.add((name, slot, side))
        node, inputs = graph[name], graph[name]["inputs"]
        if "zeroout" in node["class_type"].lower().replace(" ", "").replace("_", ""):
            found.zeroed.append(name)
            continue
        if slot and name != sampler:
            side = _named_side(names(node["class_type"]) if _has_sides(inputs) else (), slot) or side
        links = _conditioning(inputs, side)
        if not links and text_keys(inputs, side):
            found.encoders.append((name, side))
            continue
        others = {
            key: (*value, side)
            for key, value in inputs.items()
            if is_link(value) and not key.startswith(NO_CONDITIONING) and SIDES[side] not in key.lower()
        }
        named = [link for key, link in others.items() if _CONDITIONING.search(key.lower())]
        todo += links or named or list(others.values())
    found.encoders = list(dict.fromkeys(found.encoders))
    return found


def _has_sides(inputs: Mapping[str, Any]) -> bool:
    return all(any(side in key.lower() for key in inputs) for side in SIDES)


def _named_side(names: Sequence[str], slot: int) -> str | None:
    """The side that an output's name says."""
    name = str(names[slot]).lower() if slot < len(names) else ""
    return next((side for side in SIDES if side in name), None)


def _conditioning(inputs: Mapping[str, Any], side: str) -> list[tuple[str, int, str]]:
    """(node, output, side) that the conditioning of a side comes from, where inputs are named after it."""
    links = {key: value for key, value in inputs.items() if is_link(value)}
    if "guider" in links and "positive" not in links:
        return [(*links["guider"], side)]
    if "positive" in links:
        link, other = links.get(side, links["positive"]), links.get(SIDES[side])
        # Nodes with both give positive first: taken the other way round, they are crossed.
        crossed = False
        if other is not None and other[0] == link[0] and other[1] != link[1]:
            crossed = (other[1] < link[1]) == (side == "positive")
        return [(*link, SIDES[side] if crossed else side)]
    if "cond1" in links:  # DualCFGGuider: the second one is its middle
        return [(*links["cond1"], side)]
    return [(*value, side) for key, value in links.items() if key.startswith("conditioning")]
