"""The measurements so far, written to disk as they are made, so that a stopped call can continue."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..storage.files import append_line, read_lines, write_whole


class Journal:
    """Rows, also written to a file as lines of JSON; `rows` starts with those of earlier calls.

    With None as `path` they are in memory only. An incomplete last line, left by a killed process, is
    removed. Raises BadInput with the number of a line that is no JSON object.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path is None or not path.exists():
            return
        self.rows = read_lines(path, "delete this line, and it is measured again; or give another --out")
        whole, end, half = path.read_bytes().rpartition(b"\n")
        if half:
            write_whole(path, whole + end)

    def add(self, fresh: Iterable[dict[str, Any]]) -> None:
        """Add rows, in one write. Raises as `append_line`."""
        fresh = list(fresh)
        self.rows += fresh
        if self.path is not None and fresh:
            append_line(self.path, "\n".join(map(json.dumps, fresh)))
