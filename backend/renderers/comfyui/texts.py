"""The texts of a workflow: from a sampler along its positive conditioning to the text encode nodes, and from
there to where the text stands."""

from __future__ import annotations

from typing import Any

from .graph import Graph, Socket, is_link, may_hold, value_at

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
    "negative",
    "uncond",
)
# They make the text that is drawn from another one. A job brings that text itself, so they are skipped.
REWRITER_NODES = ("RepriseRewriter", "RepriseRefiner")


def texts_of(graph: Graph, sampler: str) -> list[Socket]:
    """The inputs that hold the texts a sampler draws; behind a rewriter, the encoder's own input."""
    inputs = [
        Socket(node, key)
        for node in dict.fromkeys(encoders(graph, sampler))
        for key in TEXTS
        if may_hold(graph[node]["inputs"].get(key), str)
    ]
    return [origin for socket in inputs for origin in text_sockets(graph, socket)]


def text_at(graph: Graph, socket: Socket) -> str:
    """The text at an input, also a linked one; behind a rewriter, the rewriter's input."""
    value = value_at(graph, socket)
    for _ in graph:
        if not is_link(value):
            break
        inputs = graph[value[0]]["inputs"]
        value = next((inputs[key] for key in TEXTS if may_hold(inputs.get(key), str)), "")
    return value if isinstance(value, str) else ""


def text_sockets(graph: Graph, socket: Socket) -> list[Socket]:
    """The inputs that hold the text of an input: itself, or those of the nodes it is linked from. Of several
    those that are not blank."""
    origins, seen, todo = [], set(), [socket]
    while todo:  # a loop, not a recursion: graphs may be thousands of nodes deep
        one = todo.pop()
        value = value_at(graph, one)
        if isinstance(value, str) or graph[value[0]]["class_type"] in REWRITER_NODES:
            origins.append(one)
        elif value[0] not in seen:
            seen.add(value[0])
            inputs = graph[value[0]]["inputs"]
            held = [key for key in inputs if may_hold(inputs[key], str) and key != "delimiter"]
            todo += [Socket(value[0], key) for key in reversed(held)]
    return [origin for origin in origins if text_at(graph, origin).strip()] or origins[:1]


def encoders(graph: Graph, sampler: str) -> list[str]:
    """The text encode nodes behind a sampler's positive conditioning."""
    inputs = graph[sampler]["inputs"]
    start = next((inputs[key] for key in ("positive", "guider") if is_link(inputs.get(key))), None)
    if start is None:  # a sampler that encodes its text by itself
        return [sampler] if any(may_hold(inputs.get(key), str) for key in TEXTS) else []
    nodes, seen, todo = [], set(), [start]
    while todo:
        name, slot = todo.pop(0)
        if (name, slot) in seen:
            continue
        seen.add((name, slot))
        links = _conditioning(graph, name, slot)
        inputs = graph[name]["inputs"]
        if not links and any(may_hold(inputs.get(key), str) for key in TEXTS):
            nodes.append(name)
        else:
            todo += links or [
                value
                for key, value in inputs.items()
                if is_link(value) and not key.startswith(NO_CONDITIONING)
            ]
    return nodes


def _conditioning(graph: Graph, name: str, slot: int) -> list[list[Any]]:
    """The links that the conditioning at an output comes from, where inputs are named after it."""
    links = {key: value for key, value in graph[name]["inputs"].items() if is_link(value)}
    if "positive" in links:
        # Nodes with both give positive first; guiders have one output, which is guided towards it.
        return [links["negative" if slot == 1 and "negative" in links else "positive"]]
    if "cond1" in links:  # DualCFGGuider: the second one is its middle
        return [links["cond1"]]
    return [value for key, value in links.items() if key.startswith("conditioning")]
