"""The graphs of an editor's workflow: its own, and one for each subgraph node, however deep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...core.errors import BadInput

INSIDE = -10  # the node inside a subgraph that its inputs come from
DEEPEST = 50  # subgraphs in each other
MOST = 20_000  # nodes of a workflow with its subgraphs written out

Node = Mapping[str, Any]


class Link(NamedTuple):
    source: Any  # a node's id
    slot: int
    target: Any


@dataclass
class Place:
    """One graph. `path` is "57:" for the nodes of subgraph node 57, "" for the workflow's own; `outer` is the
    place of that subgraph node, and the node. `ports` and `ends` are the subgraph's inputs and outputs.

    `proxied` are values ((node, widget), value) that the subgraph node holds for widgets inside, and
    `promoted` those that stand in place of a node's own.
    """

    path: str
    nodes: dict[Any, Node]
    links: dict[Any, Link]
    outer: tuple[Place, Node] | None = None
    ports: list[Node] = field(default_factory=list)
    ends: list[Node] = field(default_factory=list)
    proxied: list[tuple[tuple[str, str], Any]] = field(default_factory=list)
    renamed: dict[Any, int] = field(default_factory=dict)

    @property
    def promoted(self) -> dict[tuple[str, str], Any]:
        return dict(self.proxied)

    def name(self, node: Node) -> str:
        """A node's id in the graph that the server gets."""
        return f"{self.path}{self.renamed.get(node['id'], node['id'])}"


def places(workflow: Node, left_out: Callable[[Node], bool]) -> list[Place]:
    """All graphs of a workflow, the inner ones behind their outer ones; not those of nodes `left_out`."""
    definitions = {one["id"]: one for one in (workflow.get("definitions") or {}).get("subgraphs") or ()}
    root = Place("", _by_id(workflow), _links(workflow))
    renamed = _renamed(workflow, definitions)
    found, todo, count = [], [root], 0
    while todo:
        place = todo.pop(0)
        found.append(place)
        count += len(place.nodes)
        if place.path.count(":") > DEEPEST or count > MOST:
            raise BadInput(f"the workflow's subgraphs are more than {DEEPEST} deep, or hold {MOST:,} nodes")
        for node in place.nodes.values():
            inner = definitions.get(node["type"])
            if inner is not None and not left_out(node):
                todo.append(
                    Place(
                        f"{place.name(node)}:",
                        _by_id(inner),
                        _links(inner),
                        (place, node),
                        list(inner.get("inputs") or ()),
                        list(inner.get("outputs") or ()),
                        _proxied(node),
                        renamed[node["type"]],
                    )
                )
    return found


def _renamed(workflow: Node, definitions: Mapping[Any, Node]) -> dict[Any, dict[Any, int]]:
    """Definition -> the ids that the editor gives to its nodes as it opens the workflow, so that no id stands
    twice in one: those of the API export."""
    used = {str(node["id"]) for node in workflow["nodes"]}
    last = max([int(workflow.get("last_node_id") or 0), *map(int, filter(str.isdecimal, used))])
    renamed: dict[Any, dict[Any, int]] = {}
    for name, definition in definitions.items():
        new = renamed[name] = {}
        for node in definition["nodes"]:
            own = str(node["id"])
            if own in used:
                last += 1
                while str(last) in used:
                    last += 1
                new[node["id"]], own = last, str(last)
            used.add(own)
            if own.isdecimal():
                last = max(last, int(own))
    return renamed


def _by_id(graph: Node) -> dict[Any, Node]:
    return {node["id"]: node for node in graph["nodes"]}


def _links(graph: Node) -> dict[Any, Link]:
    """By number. Older editors write [number, source, slot, target, slot, type]."""
    links = {}
    for one in graph.get("links") or ():
        if isinstance(one, dict):
            links[one["id"]] = Link(one["origin_id"], one["origin_slot"], one["target_id"])
        elif one is not None:
            links[one[0]] = Link(one[1], one[2], one[3])
    return links


def _proxied(node: Node) -> list[tuple[tuple[str, str], Any]]:
    """What a subgraph node of an older editor holds for widgets inside: `proxyWidgets` names them, in the
    order of its values."""
    names = (node.get("properties") or {}).get("proxyWidgets")
    values = node.get("widgets_values")
    if not isinstance(names, list) or not isinstance(values, list):
        return []
    pairs = zip(names, values)
    return [((str(name[0]), str(name[1])), value) for name, value in pairs if value is not None]
