"""What a benchmark has measured so far, on disk at once, so that a stopped call goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from ..storage.files import append_line, read_lines, write_whole


class Journal:
    """Rows, also as lines of JSON in a file: those of earlier calls first. Without a file, in memory alone.

    A line that a kill left half written is taken off. Raises BadInput for a file of something else.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path is None or not path.exists():
            return
        try:
            self.rows = read_lines(path)
        except ValueError as error:
            raise BadInput(f"{path} is damaged ({error}); delete it, or give another --out") from error
        whole, end, half = path.read_bytes().rpartition(b"\n")
        if half:
            write_whole(path, whole + end)

    def add(self, fresh: Iterable[dict[str, Any]]) -> None:
        """All in one write. Raises as `write_whole` does."""
        fresh = list(fresh)
        self.rows += fresh
        if self.path is not None and fresh:
            append_line(self.path, "\n".join(map(json.dumps, fresh)))
