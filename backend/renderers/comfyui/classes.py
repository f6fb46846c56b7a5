"""What the node classes of a ComfyUI server take and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from ...core.errors import RenderFailed
from ...core.parsing import parse_json
from ...net.credentials import COMFYUI, find_key, key_header
from ...net.http import HttpFault, fetch, quote

LIMITS = {"timeout": 60.0, "max_bytes": 2**26}  # of a server with many packs: some 10 MB


def object_info(urls: Sequence[str]) -> Callable[[], Mapping[str, Any]]:
    """A function that gives the `/object_info` of the first server that answers, which is asked once.

    It raises RenderFailed where none answers.
    """

    @cache
    def ask() -> Mapping[str, Any]:
        reasons = []
        for url in urls:
            try:
                key, _ = find_key(url, COMFYUI)
                answer = fetch(url, "object_info", key=key, key_header=key_header(COMFYUI), **LIMITS)
                classes = parse_json(answer.body) if answer.status == 200 else None
            except HttpFault as fault:
                reasons.append(fault.describe(url))
                continue
            except ValueError:
                classes = None
            if isinstance(classes, dict) and all(isinstance(about, dict) for about in classes.values()):
                return classes
            reasons.append(f"{url} does not list its node classes ({answer.status}: {quote(answer.body)})")
        raise RenderFailed(
            f"no ComfyUI server answers ({'; '.join(reasons)}); start one, or correct the address"
        )

    return ask


def output_names(object_info: Callable[[], Mapping[str, Any]] | None) -> Callable[[str], Sequence[str]]:
    """A function that gives the names of a class's outputs; none where no server says them."""
    classes = _classes(object_info)

    def names(kind: str) -> Sequence[str]:
        listed = (classes().get(kind) or {}).get("output_name")
        return listed if isinstance(listed, list) else ()

    return names


def input_types(object_info: Callable[[], Mapping[str, Any]] | None) -> Callable[[str, str], str | None]:
    """A function that gives the type of a class's input, such as "FLOAT", "COMBO" for a choice; None where no
    server says it."""
    classes = _classes(object_info)

    def kind(node: str, name: str) -> str | None:
        parts = (classes().get(node) or {}).get("input")
        for part in parts.values() if isinstance(parts, dict) else ():
            about = part.get(name) if isinstance(part, dict) else None
            if isinstance(about, list) and about:
                return about[0] if isinstance(about[0], str) else "COMBO"
        return None

    return kind


def _classes(object_info: Callable[[], Mapping[str, Any]] | None) -> Callable[[], Mapping[str, Any]]:
    @cache
    def classes() -> Mapping[str, Any]:
        try:
            return object_info() if object_info is not None else {}
        except RenderFailed:
            return {}

    return classes
