"""A workflow from any file that people have: API-format JSON, the editor's JSON, and pictures and videos that
ComfyUI saved, which hold the graph that drew them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import BadInput, plain
from ...core.parsing import parse_json
from .editor import EXPORT, convert
from .embedded import embedded_texts
from .graph import Graph, check_graph

ObjectInfo = Callable[[], Mapping[str, Any]]
MOST_BYTES = 2**28  # of a JSON file
QUOTED = 80  # characters of other programs' settings in a message


@dataclass(frozen=True)
class SavedWorkflow:
    """What a file holds: a graph that a server can run, else an editor's workflow, which a server's classes
    make one of."""

    where: str
    graph: Graph | None
    editor: Mapping[str, Any] | None = None

    def to_graph(self, object_info: ObjectInfo | None) -> Graph:
        """The graph. `object_info` gives a server's `/object_info`; it is called for an editor's workflow
        alone. Raises BadInput where that cannot be converted, or without a server."""
        if self.graph is not None:
            return self.graph
        assert self.editor is not None
        if object_info is None:
            raise BadInput(
                f"{self.where} is a workflow for the editor, which is converted with the help of a server; "
                f"name one, or {EXPORT}"
            )
        return check_graph(convert(self.editor, object_info(), self.where), self.where)


def read_workflow(path: Path, object_info: ObjectInfo | None = None) -> Graph:
    """The whole graph in a file, as a server runs it; see `read_saved` and `SavedWorkflow.to_graph`."""
    return read_saved(path).to_graph(object_info)


def read_saved(path: Path) -> SavedWorkflow:
    """What a file holds. Raises BadInput for one without a workflow."""
    try:
        with path.open("rb") as file:
            start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
            if start[:1] in (b"{", b"[") or path.suffix.lower() == ".json":
                file.seek(0)
                return _parsed(file.read(MOST_BYTES), str(path))
    except OSError as error:
        raise BadInput(f"cannot read the workflow {path}: {error.strerror}") from error
    texts = embedded_texts(path)
    if "prompt" in texts:
        try:
            return _parsed(texts["prompt"], f"{path} (its prompt)")
        except BadInput:
            if "workflow" not in texts:
                raise
    if "workflow" in texts:
        return _parsed(texts["workflow"], f"{path} (its workflow)")
    if "parameters" in texts:
        words = plain(texts["parameters"], QUOTED)
        raise BadInput(
            f"{path} was not saved by ComfyUI: it holds settings of Automatic1111 or a program like it, "
            f"which are no workflow ({words!r}); build one in ComfyUI and pass the prompt to it"
        )
    raise BadInput(
        f"{path} holds no workflow: it was not saved by ComfyUI, or without its metadata, which chats and "
        "picture sites remove; give the original file, or the workflow's JSON"
    )


def _parsed(text: str | bytes, where: str) -> SavedWorkflow:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise BadInput(f"{where} is not JSON; give a workflow that ComfyUI saved") from error
    for key in ("prompt", "output"):  # as it is posted to a server, and as the editor's own function gives it
        if isinstance(value, dict) and isinstance(value.get(key), dict) and "class_type" not in value[key]:
            value = value[key]
            break
    if isinstance(value, dict) and isinstance(value.get("nodes"), list):
        return SavedWorkflow(where, None, value)
    return SavedWorkflow(where, check_graph(value, where))
