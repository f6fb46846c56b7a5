"""The widgets of a node class, in the order in which the editor lists them and saves their values.

Source: `addInputs` and the widget constructors of ComfyUI's frontend 1.49. A class is an entry of a server's
`/object_info`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Specs = dict[str, list[Any]]  # an input's name -> [type, or a list of choices; options]

NUMBERS = ("INT", "FLOAT")
DYNAMIC, AUTOGROW = "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3"
# What the editor draws a widget for; every other type is a socket.
VALUES = {*NUMBERS, "STRING", "BOOLEAN", "COMBO", "COLOR", "COLORS", "MARKDOWN", "TEXTAREA", "CURVE", "RANGE"}
VALUES |= {"BOUNDING_BOX", "BOUNDING_BOXES", "CHART", "GALLERIA", "VIDEO_EDIT", DYNAMIC, "IMAGECOMPARE"}
# Its value is made in the browser when the workflow is queued.
BROWSER = {"WEBCAM", "AUDIO_RECORD", "LOAD_3D", "LOAD_3D_ADVANCED", "PAINTER", "COMPOSITOR"}
UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")
UNSET = object()


@dataclass(frozen=True)
class Widget:
    """`sent`: whether a queued graph holds its value; the editor keeps some for itself."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sent: bool = True

    @property
    def default(self) -> Any:
        """The value of a node that was never changed; UNSET where there is none."""
        empty = {"INT": 0, "FLOAT": 0, "STRING": "", "BOOLEAN": False, "IMAGECOMPARE": ["", ""]}
        choices = self.options.get("options")
        if self.kind in ("COMBO", DYNAMIC) and isinstance(choices, list) and choices:
            first = choices[0]
            return self.options.get("default") or (first["key"] if self.kind == DYNAMIC else first)
        return self.options.get("default", empty.get(self.kind, UNSET))

    def takes(self, value: Any) -> bool:
        """Whether a saved value can be one of this widget."""
        if self.kind in NUMBERS:
            whole = self.kind == "FLOAT" or not isinstance(value, float) or value.is_integer()
            return isinstance(value, int | float) and not isinstance(value, bool) and whole
        if self.kind == "BOOLEAN":
            return isinstance(value, bool) or value in (0, 1)
        if self.kind in ("STRING", "COMBO", DYNAMIC):
            several = isinstance(value, list) and bool(self.options.get("multi_select"))
            return several or isinstance(value, str | int | float)
        return True


def sockets(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, type) of a class's inputs that have no widget, as the editor orders them."""
    return [(name, kind) for name, kind, options in _inputs(about) if not _has_widget(kind, options)]


def widgets(about: Mapping[str, Any], saved: list[Any] | None = None) -> Iterator[tuple[Widget, Any]]:
    """The widgets of a class, each with its value of those `saved` by position, or UNSET.

    What a dynamic choice shows depends on its value.
    """
    values = iter(_without_sockets(about, saved or []))
    todo = [(name, kind, options) for name, kind, options in _inputs(about) if _has_widget(kind, options)]
    if any(options.get(key) for _, _, options in todo for key in UPLOADS):
        todo.append(("upload", "BUTTON", {}))
    while todo:
        name, kind, options = todo.pop(0)
        widget = Widget(name, kind, options, sent=kind != "BUTTON")
        value = UNSET if kind == "IMAGECOMPARE" else next(values, UNSET)  # which is not saved
        if value is None and kind == "COMBO":
            value = UNSET
        yield widget, value
        if about.get("name") == "CustomCombo":
            yield from _own_choices(value, list(values))
        for control in _controls(widget):
            yield control, next(values, UNSET)
        if kind == DYNAMIC:
            key = widget.default if value is UNSET else value
            chosen = [one["inputs"] for one in options.get("options") or () if one.get("key") == key]
            nested = [
                (f"{name}.{part}", of, more) for inputs in chosen[:1] for part, of, more in _specs(inputs)
            ]
            todo = [one for one in nested if _has_widget(one[1], one[2])] + todo


def _own_choices(choice: Any, saved: list[Any]) -> Iterator[tuple[Widget, Any]]:
    """The widgets of a Custom Combo behind its choice, which no class lists: its place, and the choices."""
    choices = saved[1:]  # behind the place
    yield Widget("index", "INT"), choices.index(choice) if choice in choices else -1
    for number, one in enumerate(choices, start=1):
        yield Widget(f"option{number}", "STRING"), one


def _controls(widget: Widget) -> list[Widget]:
    """What the editor adds to change a value after each run, and to filter its choices."""
    asked = widget.options.get("control_after_generate")
    if asked is None:
        asked = widget.kind == "INT" and widget.name in ("seed", "noise_seed")
    if not asked or widget.kind not in (*NUMBERS, "COMBO"):
        return []
    names = ["control_after_generate", "control_filter_list"][: 2 if widget.kind == "COMBO" else 1]
    return [Widget(name, "CONTROL", sent=False) for name in names]


def _inputs(about: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, type, options) of all inputs of a class, in its order."""
    return _specs(about.get("input") or {}, about.get("input_order") or {})


def _specs(
    inputs: Mapping[str, Any], order: Mapping[str, Any] | None = None
) -> list[tuple[str, str, dict[str, Any]]]:
    listed = []
    for part in ("required", "optional"):
        specs: Specs = inputs.get(part) or {}
        names = [name for name in (order or {}).get(part) or () if name in specs]
        for name in dict.fromkeys([*names, *specs]):
            kind, options = specs[name][0], dict(specs[name][1]) if len(specs[name]) > 1 else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            listed.append((name, str(options.get("widgetType") or kind), options))
    return listed


def _has_widget(kind: str, options: Mapping[str, Any]) -> bool:
    return (kind in VALUES or kind in BROWSER) and not options.get("forceInput")


def _without_sockets(about: Mapping[str, Any], saved: list[Any]) -> list[Any]:
    """Saved values without those of inputs that are sockets by now: older editors saved them, too."""
    is_socket: list[bool] = []
    for name, kind, options in _inputs(about):
        if kind in VALUES or kind in BROWSER:
            forced = bool(options.get("forceInput"))
            controls = len(_controls(Widget(name, kind, options)))
            is_socket += [forced] + [False] * controls
    if any(is_socket) and len(is_socket) == len(saved):
        return [value for value, left_out in zip(saved, is_socket, strict=True) if not left_out]
    return saved


_COMMENT = re.compile(r"/\*[\s\S]*?\*/|//.*")


def first_choices(text: str) -> str:
    """A text whose {a|b} the editor replaces by one of the choices when it queues: here by the first, so that
    a workflow is the same each time. Comments are left out."""
    text, out, depth, skip = _COMMENT.sub("", text), [], 0, 0  # skip: the depth whose first choice is over
    position = 0
    while position < len(text):
        letter = text[position]
        position += 1
        if letter == "\\":
            letter += text[position : position + 1]
            position += 1
        elif letter == "{":
            depth += 1
            continue
        elif letter == "}" and depth:
            skip = 0 if skip == depth else skip
            depth -= 1
            continue
        elif letter == "|" and depth:
            skip = skip or depth
            continue
        if not skip:
            out.append(letter)
    return re.sub(r"\\([{}|])", r"\1", "".join(out))
