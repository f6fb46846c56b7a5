"""A ComfyUI workflow as the graph that a server runs (API format): its nodes, links, and what a node is.

Nodes are told apart by their inputs' names, which custom nodes share with ComfyUI's own, not by a list of
classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...core.errors import BadInput

Node = dict[str, Any]  # {"class_type", "inputs", "_meta": {"title"}}; a link is [node's id, output's index]
Graph = dict[str, Node]

SEEDS = ("seed", "noise_seed")
PIPES = (
    "pipe",
    "basic_pipe",
    "detailer_pipe",
    "sdxl_tuple",
    "context",
)  # packs' bundles of model and prompts
AGAIN = "export it again in API format"


@dataclass(frozen=True, order=True)
class Socket:
    """One input of one node, written "6.text"."""

    node: str
    input: str

    def __str__(self) -> str:
        return f"{self.node}.{self.input}"


def check_graph(graph: Any, where: str) -> Graph:
    """A graph as a file `where` holds it, without what ComfyUI and packs write beside a node's class, inputs
    and title, such as `is_changed: [NaN]`. Raises BadInput for what is no graph in API format."""
    if not isinstance(graph, dict) or not graph:
        raise BadInput(f"{where} holds no nodes; give a workflow that ComfyUI saved")
    for name, node in graph.items():
        if not (
            isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(node.get("inputs"), dict)
        ):
            raise BadInput(f"{where}: node {name!r} has no class_type and inputs; {AGAIN}")
        for key, value in node["inputs"].items():
            if is_link(value) and value[0] not in graph:
                missing = f"{where}: {name}.{key} comes from node {value[0]!r}, which is not there"
                raise BadInput(f"{missing}; {AGAIN}")
            if not _is_finite(value):
                raise BadInput(f"{where}: {name}.{key} is NaN or infinite, which no server takes; correct it")
    return {
        name: {key: node[key] for key in ("class_type", "inputs", "_meta") if key in node}
        for name, node in graph.items()
    }


def _is_finite(value: Any) -> bool:
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, float) and not math.isfinite(one):
            return False
        todo += one if isinstance(one, list) else one.values() if isinstance(one, dict) else ()
    return True


def is_link(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def upstream(graph: Graph, link: Sequence[Any]) -> Graph:
    """The nodes that make what `link` brings, in the graph's order."""
    kept, todo = set(), [link[0]]
    while todo:
        name = todo.pop()
        if name not in kept:
            kept.add(name)
            todo += [value[0] for value in graph[name]["inputs"].values() if is_link(value)]
    return {name: node for name, node in graph.items() if name in kept}


def is_sampler(node: Node) -> bool:
    """Whether the node draws from noise: it has a seed or is given noise, and a conditioning or steps.

    Others with a seed choose wildcards or write texts; a number called `noise` is an amount.
    """
    inputs = node["inputs"]
    if not (any(key in inputs for key in SEEDS) or is_link(inputs.get("noise"))):
        return False
    if any(is_link(inputs.get(key)) for key in ("guider", "positive")):
        return True
    drawn = any(is_link(inputs.get(key)) for key in ("model", *PIPES))
    return drawn and any(key in inputs for key in ("steps", "sigmas", "latent_image"))


def split_socket(graph: Graph, text: str) -> tuple[str, str]:
    """(node, input) that a text names, as "6.text"; both may have dots. The input is "" for a node alone."""
    nodes = [text[:at] for at, letter in enumerate(text) if letter == "." and text[:at] in graph]
    if nodes and text not in graph:
        return nodes[0], text[len(nodes[0]) + 1 :]
    node, dot, key = text.rpartition(".")
    return (node, key) if dot and text not in graph else (text, "")


def value_at(graph: Graph, socket: Socket) -> Any:
    """What an input holds: a value, or a link."""
    return graph[socket.node]["inputs"][socket.input]


def may_hold(value: Any, kind: type) -> bool:
    """Whether an input with this value holds a `kind`, or is a link that may bring one."""
    return is_link(value) or (isinstance(value, kind) and not isinstance(value, bool))


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…'"


def describe(node: Node) -> str:
    title = node.get("_meta", {}).get("title") if isinstance(node.get("_meta"), dict) else None
    kind = node["class_type"]
    return f"{title}, {kind}" if isinstance(title, str) and title and title != kind else kind


def title(name: str, node: Node) -> str:
    return f"node {name} ({describe(node)})"
