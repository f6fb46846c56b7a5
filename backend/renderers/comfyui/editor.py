"""An editor's workflow (nodes and links), converted to the graph that a server runs (API format).

Source: `graphToPrompt` and `ExecutableNodeDTO` of ComfyUI's frontend 1.49: subgraphs are expanded, their
nodes named "57:3"; muted and bypassed nodes, reroutes and primitives are resolved. What only the editor or a
pack's script can decide is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import BadInput
from .graph import Graph, shorten
from .places import INSIDE, Link, Place, places
from .widgets import AUTOGROW, BROWSER, UNSET, Widget, first_choices, sockets, widgets

MUTED, BYPASSED = 2, 4
REROUTES = ("Reroute", "Reroute (rgthree)")
GETTERS = {"GetNode": "SetNode", "easy getNode": "easy setNode"}
VIRTUAL = {*REROUTES, *GETTERS, *GETTERS.values(), "PrimitiveNode", "Note", "MarkdownNote"}
# They switch other nodes off and on while the workflow is edited; saved is what they left.
CONTROLS = ("Fast Groups", "Fast Muter", "Fast Bypasser", "Fast Actions", "Mute / Bypass", "Label (rgthree)")
CONTROLS += ("Bookmark", "Node Collector", "Random Unmuter")
EXPORT = "open it in ComfyUI, choose File > Export (API), and give that file"


def convert(workflow: Mapping[str, Any], classes: Mapping[str, Any], where: str) -> Graph:
    """The graph of an editor's workflow. `classes`: a server's `/object_info`; `where`: the file's name.

    Raises BadInput, which names the node, for what cannot be converted.
    """
    try:
        return _Conversion(classes, where).run(workflow)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise BadInput(f"{where} is a damaged workflow of the editor ({error!r:.80}); {EXPORT}") from error


class _Conversion:
    def __init__(self, classes: Mapping[str, Any], where: str):
        self.classes, self.where = classes, where
        self.inner: dict[str, Place] = {}  # a subgraph node's path -> the place of its nodes

    def run(self, workflow: Mapping[str, Any]) -> Graph:
        listed = places(workflow, lambda node: node.get("mode") in (MUTED, BYPASSED))
        self.inner = {place.path: place for place in listed}
        graph: Graph = {}
        for place in listed:
            for node in place.nodes.values():
                if node.get("mode") in (MUTED, BYPASSED) or self.is_virtual(place, node):
                    continue
                graph[place.name(node)] = {
                    "class_type": node["type"],
                    "inputs": self.inputs(place, node),
                    "_meta": {"title": self.title(node)},
                }
        for made in graph.values():  # of what was muted
            inputs = made["inputs"]
            for key in [
                key for key, value in inputs.items() if isinstance(value, _To) and value[0] not in graph
            ]:
                del inputs[key]
            made["inputs"] = {key: list(v) if isinstance(v, _To) else v for key, v in inputs.items()}
        return graph

    def title(self, node: Mapping[str, Any]) -> str:
        about = self.classes.get(node["type"]) or {}
        return str(node.get("title") or about.get("display_name") or node["type"])

    def refuse(self, place: Place, node: Mapping[str, Any], why: str) -> BadInput:
        kind = node["type"] if node["type"] == self.title(node) else f"{self.title(node)}, {node['type']}"
        return BadInput(f"{self.where}: node {place.name(node)} ({kind}) {why}; {EXPORT}")

    def is_virtual(self, place: Place, node: Mapping[str, Any]) -> bool:
        """Whether the server never sees the node. Raises BadInput for one that it does not know."""
        kind = node["type"]
        if place.name(node) + ":" in self.inner or kind in VIRTUAL or kind.startswith(CONTROLS):
            return True
        if kind in self.classes:
            return False
        if kind.startswith(("workflow/", "workflow>")):
            raise self.refuse(place, node, "is a group of an old editor")
        if "Everywhere" in kind:
            raise self.refuse(place, node, "makes links when the workflow is queued")
        linked = any(one.get("link") is not None for one in node.get("inputs") or ())
        if linked or any(one.get("links") for one in node.get("outputs") or ()):
            raise self.refuse(place, node, "is not installed on the server, or exists in the editor only")
        return True

    def inputs(self, place: Place, node: Mapping[str, Any]) -> dict[str, Any]:
        """A node's inputs: what its widgets hold, then what its links bring."""
        inputs: dict[str, Any] = {}
        shown: dict[str, Widget] = {}
        for widget, value in self.values(place, node):
            if not widget.sent:
                continue
            shown[widget.name] = widget
            own = (str(node["id"]), widget.name) not in place.promoted
            if own and widget.options.get("dynamicPrompts") and isinstance(value, str):
                value = first_choices(value)
            if value is not UNSET:
                inputs[widget.name] = value
        for slot in node.get("inputs") or ():
            source = self.follow(place, node, slot)
            if source is not None:
                inputs[slot["name"]] = source
        for name, widget in shown.items():
            value = inputs.get(name, UNSET)
            if isinstance(value, _To) or value is UNSET:
                continue
            if widget.kind in BROWSER:
                raise self.refuse(place, node, f"makes its input {name} in the browser")
            if not widget.takes(value):
                wanted = {"INT": "a whole number", "FLOAT": "a number", "BOOLEAN": "true or false"}
                raise self.refuse(
                    place,
                    node,
                    f"holds {shorten(value)} for {name}, not {wanted.get(widget.kind, 'a text')}: it was "
                    "saved with another version of the node than the server has",
                )
            if isinstance(value, list):
                # Lists stand for links. The server takes this apart again.
                value = {"__value__": value, **({"__type__": "CURVE"} if widget.kind == "CURVE" else {})}
            inputs[name] = value
        return inputs

    def values(self, place: Place, node: Mapping[str, Any]) -> list[tuple[Widget, Any]]:
        """A node's widgets with the values that they hold themselves."""
        saved, named = node.get("widgets_values"), node.get("widgets_values_named")
        if isinstance(saved, dict):
            saved, named = None, saved
        found = []
        for widget, value in widgets(self.classes[node["type"]], saved):
            if isinstance(named, dict) and widget.sent:
                value = named.get(widget.name, UNSET if saved is None else value)
            value = widget.default if value is UNSET else value
            found.append((widget, place.promoted.get((str(node["id"]), widget.name), value)))
        return found

    def follow(self, place: Place, node: Mapping[str, Any], slot: Mapping[str, Any]) -> Any:
        """What an input's link brings: a link of the graph, the value of a primitive or of a subgraph's own
        input, or None."""
        kind, seen, first = slot.get("type", "*"), set(), slot
        while True:
            link = place.links.get(slot.get("link"))
            if link is None:
                return None
            step = (place.path, node["id"], slot.get("name"))
            if step in seen:
                raise self.refuse(place, node, "is linked in a circle")
            seen.add(step)
            if link.source == INSIDE:
                port = place.ports[link.slot]
                outer, instance = place.outer  # type: ignore[misc]  only a subgraph has such links
                slot = next((one for one in instance.get("inputs") or () if one["name"] == port["name"]), {})
                if slot.get("link") is None:
                    return self.host_value(outer, instance, place, link.slot)
                place, node, kind = outer, instance, slot.get("type", "*")
                continue
            made = self.output(place, link, kind)
            if isinstance(made, _Value):  # of a primitive, which reaches the inputs beside it alone
                return made.value if slot is first else None
            if made is None or isinstance(made, _To):
                return made
            place, node, slot, kind = made

    def output(self, place: Place, link: Link, kind: Any) -> Any:
        """Where an output comes from: a link of the graph, a value, None, or the input to go on from, as
        (place, node, input, type)."""
        slot = link.slot
        while True:
            node = place.nodes[link.source]
            mode, inputs = node.get("mode"), node.get("inputs") or []
            if mode == MUTED:
                return None
            if mode == BYPASSED:
                through = self.bypassed(node, slot, kind)
                return through and (place, node, through, through.get("type", "*"))
            inner = self.inner.get(place.name(node) + ":")
            if inner is not None:
                port = inner.ends[slot]
                inside = inner.links.get((port.get("linkIds") or [None])[0])
                if inside is None:
                    return None
                if inside.source == INSIDE:  # straight through
                    name = inner.ports[inside.slot]["name"]
                    return place, node, next((one for one in inputs if one["name"] == name), {}), kind
                place, link, slot = inner, inside, inside.slot
                continue
            break
        if node["type"] in GETTERS:
            found = self.setter(place, node)
            if found is None:
                raise self.refuse(place, node, "reads what no Set node sets")
            place, node = found
            inputs = node.get("inputs") or []
        elif node["type"] == "PrimitiveNode":
            values = node.get("widgets_values") or []
            value = place.promoted.get((str(node["id"]), "value"), values[0] if values else None)
            return None if value is None else _Value(value)
        if node["type"] in VIRTUAL:
            return (place, node, inputs[0], kind) if inputs else None
        return _To((place.name(node), slot))

    def setter(self, place: Place, node: Mapping[str, Any]) -> tuple[Place, Mapping[str, Any]] | None:
        """The Set node of a Get node's name: in its own graph, else in those around it."""
        while True:
            for one in place.nodes.values():
                if one["type"] == GETTERS[node["type"]] and _variable(one) == _variable(node):
                    return place, one
            if place.outer is None:
                return None
            place = place.outer[0]

    def bypassed(self, node: Mapping[str, Any], slot: int, kind: Any) -> Mapping[str, Any] | None:
        """The input that a bypassed node hands on: the one beside the output, else the first that fits."""
        inputs = self.slots(node)
        made = node["outputs"][slot].get("type", "*")
        if _any(kind):
            return inputs[slot if slot < len(inputs) else 0] if inputs else None
        if slot < len(inputs) and _fits(inputs[slot]["type"], made) and _fits(inputs[slot]["type"], kind):
            return inputs[slot]
        exact = [one for one in inputs if one["type"] == kind]
        fitting = [one for one in inputs if _fits(one["type"], made) and _fits(one["type"], kind)]
        return next(iter(exact + fitting), None)

    def slots(self, node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """A node's inputs in the order of its class, those of widgets last, then what a pack added."""
        saved = {one["name"]: one for one in node.get("inputs") or ()}
        about = self.classes.get(node["type"])
        if about is None:
            return list(saved.values())
        named = [(name, kind) for name, kind in sockets(about) if kind != AUTOGROW]
        named += [
            (one.name, one.kind) for one, _ in widgets(about, node.get("widgets_values") or []) if one.sent
        ]
        defined = [{"name": name, **saved.pop(name, {}), "type": kind} for name, kind in named]
        return [*defined, *saved.values()]

    def host_value(self, outer: Place, instance: Mapping[str, Any], place: Place, port: int) -> Any:
        """What a subgraph's own widget holds for an input inside: the value of the subgraph node, else that
        of the first widget inside; None where the input has no widget."""
        name = place.ports[port]["name"]
        target = self.widget_of(place, port)
        if target is None:
            return None
        given = outer.promoted.get((str(instance["id"]), name), self.hosted(instance, place).get(name, UNSET))
        if given is not UNSET:
            return given
        node, key = target
        inner = self.inner.get(place.name(node) + ":")
        if inner is not None:
            index = next(i for i, one in enumerate(inner.ports) if one["name"] == key)
            return self.host_value(place, node, inner, index)
        return next((value for widget, value in self.values(place, node) if widget.name == key), None)

    def hosted(self, instance: Mapping[str, Any], place: Place) -> dict[str, Any]:
        """The values that a subgraph node holds for its inputs with widgets, by the inputs' names."""
        targets = [(port["name"], self.widget_of(place, i)) for i, port in enumerate(place.ports)]
        names = [name for name, target in targets if target is not None]
        saved, named = instance.get("widgets_values"), instance.get("widgets_values_named")
        values = dict(zip(names, saved if isinstance(saved, list) else ()))
        if isinstance(named, dict):
            values |= {name: named[name] for name in names if name in named}
        sources = {(str(target[0]["id"]), target[1]): name for name, target in targets if target is not None}
        for (node, key), value in place.proxied:
            name = key if node == "-1" else sources.get((node, key))
            if name is not None:
                values[name] = value
        return {name: value for name, value in values.items() if value is not None}

    def widget_of(self, place: Place, port: int) -> tuple[Mapping[str, Any], str] | None:
        """(node, input) of the first widget that a subgraph's input leads to."""
        for number in place.ports[port].get("linkIds") or ():
            link = place.links.get(number)
            node = place.nodes.get(link.target) if link else None
            slot = next((one for one in (node or {}).get("inputs") or () if one.get("link") == number), None)
            if node is None or slot is None:
                continue
            inner = self.inner.get(place.name(node) + ":")
            if inner is not None:
                index = next((i for i, one in enumerate(inner.ports) if one["name"] == slot["name"]), None)
                if index is not None and self.widget_of(inner, index) is not None:
                    return node, slot["name"]
            elif node["type"] in self.classes:
                saved = node.get("widgets_values")
                listed = widgets(self.classes[node["type"]], saved if isinstance(saved, list) else None)
                if any(widget.sent and widget.name == slot["name"] for widget, _ in listed):
                    return node, slot["name"]
        return None


class _To(tuple[str, int]):
    """A link of the graph, told apart from a list that a widget holds."""


class _Value:
    def __init__(self, value: Any):
        self.value = value


def _variable(node: Mapping[str, Any]) -> Any:
    """The name that a Set or Get node stands for."""
    values = node.get("widgets_values") or [None]
    return next(iter(values.values())) if isinstance(values, dict) else values[0]


def _any(kind: Any) -> bool:
    return kind in ("*", "", 0, None)


def _fits(one: Any, other: Any) -> bool:
    """Whether a link may join two types: equal, or with one in common where several are listed."""
    if _any(one) or _any(other):
        return True
    kinds = [set(str(kind).lower().split(",")) for kind in (one, other)]
    return bool(kinds[0] & kinds[1])
