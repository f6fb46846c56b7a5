"""What a set has so far, on disk: nothing that is finished is lost, whenever the command ends.

`set.json`      the workflow, and the name under which its runs are queued
`runs.jsonl`    a line for each finished run, written when its pictures are
`scores.jsonl`  a line for each judged picture; they are merged into runs.jsonl when the command ends
`queued.jsonl`  a line for each run before it is queued: what a killed command has left on a server is
                fetched from there, not drawn again
`rewrites.jsonl`  the rewrites of each prompt
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from ..renderers.comfyui.graph import Graph
from ..storage.checksums import file_checksum
from ..storage.files import append_line, is_inside, read_json, read_lines, write_whole

SET, RUNS, SCORES, QUEUED, REWRITES = (
    "set.json",
    "runs.jsonl",
    "scores.jsonl",
    "queued.jsonl",
    "rewrites.jsonl",
)
PICTURES = "pictures"
FILES = (SET, RUNS, SCORES, QUEUED, REWRITES, PICTURES)
REMEDY = "move it, or give another --out"
Row = dict[str, Any]


class Journal:
    """The journal in the folder `out`, which the caller holds.

    `rows` are the finished runs by name. `queued`: run -> (server, its name there), of those that an earlier
    process had queued and not finished.
    """

    def __init__(self, out: Path, mark: str, workflow: str, graph: Graph):
        self.out = out
        self.client_id = self._open_set(mark, workflow, graph)
        self.rows: dict[str, Row] = {
            row["run"]: row for row in self._lines(RUNS, {"run": str, "files": list})
        }
        needs = {"run": str, "server": str, "prompt_id": str}
        self.queued: dict[str, tuple[str, str]] = {
            line["run"]: (line["server"], line["prompt_id"])
            for line in self._lines(QUEUED, needs)
            if line["run"] not in self.rows
        }
        self._scores: dict[tuple[str, str], Row] = {
            (line["file"], line["judge"]): line
            for line in self._lines(SCORES, {"file": str, "judge": str, "scores": dict})
        }
        self.rewrites: dict[str, list[Row]] = {
            line["key"]: line["rewrites"] for line in self._lines(REWRITES, {"key": str, "rewrites": list})
        }
        # Without the last line that a killed process has not finished, and without what is done.
        self._write(
            QUEUED,
            ({"run": run, "server": at[0], "prompt_id": at[1]} for run, at in self.queued.items()),
        )
        self._write(SCORES, self._scores.values())
        self._write(REWRITES, ({"key": key, "rewrites": rewrites} for key, rewrites in self.rewrites.items()))
        self.compact()

    def _open_set(self, mark: str, workflow: str, graph: Graph) -> str:
        path = self.out / SET
        try:
            found = read_json(path, REMEDY, {"mark": str, "client_id": str, "workflow": str})
        except FileNotFoundError:
            client_id = uuid.uuid4().hex
            made = {"workflow": workflow, "mark": mark, "client_id": client_id, "graph": graph}
            write_whole(path, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
            return client_id
        if found["mark"] != mark:
            raise BadInput(
                f"{self.out} holds the pictures of another workflow, or {found['workflow']} has changed "
                "since; give another --out"
            )
        return found["client_id"]

    def _lines(self, name: str, needs: dict[str, type]) -> list[Row]:
        return read_lines(self.out / name, "delete this line", needs)

    def _write(self, name: str, rows: Iterable[Row]) -> None:
        text = "".join(_line(row) + "\n" for row in rows)
        path = self.out / name
        if text or path.exists():
            write_whole(path, text)

    def compact(self) -> None:
        """Write runs.jsonl as one line a run, with its scores. Raises as `write_whole`."""
        self._write(RUNS, self.rows.values())

    def queue(self, run: str, server: str, prompt_id: str) -> None:
        """A run is about to be queued. Raises as `append_line`."""
        append_line(self.out / QUEUED, _line({"run": run, "server": server, "prompt_id": prompt_id}))

    def finish(self, row: Row) -> None:
        """A run whose files are written. Raises as `append_line`."""
        append_line(self.out / RUNS, _line(row))
        self.rows[row["run"]] = row
        self.queued.pop(row["run"], None)

    def rewrite(self, key: str, rewrites: list[Row]) -> None:
        """The rewrites of a prompt. Raises as `append_line`."""
        append_line(self.out / REWRITES, _line({"key": key, "rewrites": rewrites}))
        self.rewrites[key] = rewrites

    def judged(self, file: Row, judge: str) -> bool:
        """Whether this judge has scored a picture; the picture then has its scores."""
        found = self._scores.get((_picture(file), judge))
        if found is None:
            return False
        file["scores"], file["score"] = found["scores"], found["score"]
        return True

    def score(self, file: Row, judge: str, scores: dict[str, float], score: float) -> None:
        """A picture's scores. Raises as `append_line`."""
        line = {"file": _picture(file), "judge": judge, "scores": scores, "score": score}
        append_line(self.out / SCORES, _line(line))
        self._scores[line["file"], judge] = line
        file["scores"], file["score"] = scores, score

    def is_whole(self, run: str) -> bool:
        """Whether a run is finished, and its files are as they were written."""
        row = self.rows.get(run)
        return row is not None and all(self._is_whole(file) for file in row["files"])

    def _is_whole(self, file: Row) -> bool:
        try:
            path = self.out / PICTURES / file["name"]
            return is_inside(self.out / PICTURES, path) and file_checksum(path) == file["xxh128"]
        except (OSError, KeyError, TypeError):
            return False


def _picture(file: Row) -> str:
    """A picture by its name, which has its run's, and its content: drawn again, it is judged again."""
    return f"{file['name']} {file['xxh128']}"


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
