"""The page of a set of pictures: a gallery that fills itself from `index_files/` beside it.

As the overview of many rendered prompts it is a small page with lists as scripts (a page that was opened as
a file may load nothing else) and thumbnails. It looks for new ones while the set is being drawn.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..storage.files import write_whole
from ..storage.outputs import write_made
from .pictures import picture_path, save_thumbnail
from .templates import INDEX_FILES, PAGE, template

THUMBNAIL_SIDE = 320  # pixels
IN_A_LIST = 500  # pictures of one script
PAUSE = 3.0  # seconds at least between two versions while the set is being drawn
MOVING, SOUND = (".mp4", ".webm", ".mov"), (".wav", ".mp3", ".flac", ".ogg", ".opus")


class Gallery:
    """The page in `out`, of the pictures in its folder `pictures`.

    `about` is what it says of the set: `title`, `workflow` (the graph), `prompts`, `seeds` (inputs as
    "6.text"), `command` (the words that draw a run, before what is its own), `columns` (of settings),
    `labels`, `higherIsBetter`. `ranks`: the order of the runs by their names.
    """

    def __init__(self, out: Path, pictures: str, about: Mapping[str, Any], ranks: Mapping[str, int]):
        self.out, self.pictures, self.about, self.ranks = out, pictures, dict(about), ranks
        self._place: dict[str, int] = {}  # of a run's first file
        self._files: list[tuple[str, int, int]] = []  # run, file, whether there is a thumbnail
        self._changed: set[int] = set()  # lists
        self._stamps: dict[str, str] = {}  # of each list, when it was written
        self._by_run: dict[str, Mapping[str, Any]] = {}
        self._written = -PAUSE
        self._begun = False
        self._progress = ""

    @property
    def path(self) -> Path:
        return self.out / PAGE

    def add(self, row: Mapping[str, Any]) -> None:
        """A finished run, as a line of runs.jsonl."""
        self._by_run[row["run"]] = row
        self._place[row["run"]] = len(self._files)
        for i, file in enumerate(row["files"]):
            source = picture_path(self.out / self.pictures, file["name"])
            small = False
            if source is not None and _kind(file["name"]) == "picture":
                thumbnail = self.out / INDEX_FILES / f"{file['name']}.webp"
                small = save_thumbnail(source, thumbnail, THUMBNAIL_SIDE)
            self._changed.add(len(self._files) // IN_A_LIST)
            self._files.append((row["run"], i, int(small)))

    def change(self, row: Mapping[str, Any]) -> None:
        """A run whose scores are new."""
        self._by_run[row["run"]] = row
        first = self._place.get(row["run"])
        if first is not None:
            for at in range(first, first + len(row["files"])):
                self._changed.add(at // IN_A_LIST)

    def update(self, progress: str) -> None:
        """Write what is new, now and then."""
        self._progress = progress
        if time.monotonic() - self._written >= PAUSE:
            self._publish(running=True)

    def close(self, progress: str = "") -> None:
        """The last version, also of a set that was stopped."""
        self._progress = progress or self._progress
        self._publish(running=False)

    def begin(self) -> None:
        """Write the page, of no pictures yet."""
        self._begun = True
        about = json.dumps(self.about, ensure_ascii=False)
        write_whole(self.out / INDEX_FILES / "about.js", f"reprise.about({about});\n")
        page = template("gallery.html.jinja").render(title=self.about["title"])
        write_made(self.out, self.path, page)
        self._publish(running=True)

    def _publish(self, running: bool) -> None:
        self._written = time.monotonic()
        if not self._begun:
            return
        for number in sorted(self._changed):
            files = self._files[number * IN_A_LIST : (number + 1) * IN_A_LIST]
            text = json.dumps([self._entry(*one) for one in files], ensure_ascii=False, separators=(",", ":"))
            name = f"pictures-{number}.js"
            write_whole(self.out / INDEX_FILES / name, f"reprise.list({number}, {text});\n")
            self._stamps[str(number)] = str(time.time_ns())
        state = {
            "count": len(self._files),
            "inAList": IN_A_LIST,
            "running": running,
            "progress": self._progress,
            "stamps": self._stamps,
        }
        self._changed.clear()
        write_whole(
            self.out / INDEX_FILES / "state.js", f"reprise.state({json.dumps(state, ensure_ascii=False)});\n"
        )

    def _entry(self, run: str, number: int, small: int) -> list[Any]:
        """What the page's script reads, in its order."""
        row = self._by_run[run]
        file = row["files"][number]
        return [
            file["name"],
            _kind(file["name"]),
            small,
            row["group"],
            row.get("prompt") or "",
            row.get("text") or "",
            row.get("seed"),
            row.get("settings") or {},
            row.get("labels") or {},
            row.get("set") or {},
            file.get("score"),
            file.get("scores") or {},
            row.get("server") or "",
            row.get("seconds") or 0,
            row.get("reason") or "",
            self.ranks.get(run, len(self.ranks)),
        ]


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """(columns, a row for each picture) of the lines of runs.jsonl, for a spreadsheet."""
    settings = list(dict.fromkeys(name for row in rows for name in row.get("settings") or {}))
    labels = list(dict.fromkeys(name for row in rows for name in row.get("labels") or {}))
    scores = list(
        dict.fromkeys(name for row in rows for file in row["files"] for name in file.get("scores") or {})
    )
    head = ["picture", "prompt", "text", "seed", *settings, *labels, "score", *scores]
    head += ["server", "seconds", "run", "prompt_id"]
    lines = []
    for row in rows:
        for file in row["files"]:
            given = [(row.get("settings") or {}).get(name, "") for name in settings]
            given += [(row.get("labels") or {}).get(name, "") for name in labels]
            found = [(file.get("scores") or {}).get(name, "") for name in scores]
            lines.append(
                [file["name"], row.get("prompt") or "", row.get("text") or "", row.get("seed"), *given]
                + [file.get("score", ""), *found, row.get("server"), row.get("seconds"), row["run"]]
                + [row.get("prompt_id")]
            )
    return head, lines


def _kind(name: str) -> str:
    ending = Path(name).suffix.lower()
    if ending in MOVING:
        return "video"
    if ending in SOUND:
        return "sound"
    return "picture" if ending in (".png", ".jpg", ".jpeg", ".webp", ".gif") else "file"
