"""The pages of a render, which are kept up to date while it draws.

Few prompts are one file with all its pictures inside, to be mailed or moved. Of more, `index.html` is a small
page that fills itself from `index_files/` beside it: lists of prompts as scripts (a page that was opened as a
file may load nothing else), a thumbnail and a page of each prompt. What is written there while a run goes on
does not grow with the number of its prompts.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..storage.files import write_whole
from ..storage.outputs import write_made
from ..storage.records import RECORD, Record
from .build import number_text, prompt_view
from .pictures import inline_picture, is_of, picture_path, save_thumbnail
from .tally import Tally
from .templates import INDEX_FILES, PAGE, template

IN_ONE_FILE = 12  # prompts at most: about 1 MB each with pictures of 1024 pixels
INDEX_SIDE = 288  # pixels of a thumbnail
IN_A_LIST = 500  # prompts of one script
PAUSE = 5.0  # seconds at least between two versions of the page while a run goes on


class RenderPages:
    """The pages of a run in the folder `out`. Call `add` or `pass_over` for each prompt, then `close`."""

    def __init__(self, out: Path, tally: Tally):
        self.out, self.tally = out, tally
        self._one_file = tally.total <= IN_ONE_FILE
        self._views: list[dict[str, Any]] = []  # of one file
        self._rows: list[list[Any]] = []  # of the list that is being filled
        self._full = 0  # lists before it
        self._passed_over: list[str] = []
        self._written = -PAUSE
        self._begun = False

    @property
    def path(self) -> Path:
        return self.out / PAGE

    def add(self, folder: Path, record: Record) -> None:
        """A finished prompt, whose files are in `folder`."""
        if self._one_file:
            show = partial(inline_picture, folder)
            self._views.append(
                {
                    **prompt_view(record, show),
                    "id": f"prompt-{len(self._views) + 1}",
                    "thumbnail": show(record.winner.image, INDEX_SIDE) if self.tally.total > 1 else None,
                }
            )
        else:
            name = folder.name
            self._begin()
            score = record.winner.score
            self._list([name, record.prompt, number_text(score), score, self._thumbnail(folder, record), ""])
            self._prompt_page(folder, record)
        self._update()

    def pass_over(self, prompt: str, why: str) -> None:
        """A prompt that could not be drawn."""
        if self._one_file:
            self._passed_over.append(f"{prompt}: {why}")
        else:
            self._begin()
            self._list(["", prompt, "", None, 0, why])
        self._update()

    def close(self) -> None:
        """The last version, also of a run that was stopped. Without a finished prompt there is no page."""
        self._publish(running=False)

    def _update(self) -> None:
        # One prompt's page is complete when it is there.
        if self.tally.total > 1 and time.monotonic() - self._written >= PAUSE:
            self._publish(running=True)

    def _publish(self, running: bool) -> None:
        if self._one_file:
            if self._views:
                page = render_page(self._views, self.tally, running, self._passed_over)
                write_made(self.out, self.path, page)
        elif self._begun:
            self._write_list()
            self._write_state(running)
        self._written = time.monotonic()

    def _begin(self) -> None:
        """What does not change while the run goes on."""
        if self._begun:
            return
        self._begun = True
        write_whole(self.out / INDEX_FILES / "page.css", template("page.css.jinja").render())
        self._write_state(running=True)
        page = template("overview.html.jinja").render(total=self.tally.total)
        write_made(self.out, self.path, page)

    def _list(self, row: list[Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == IN_A_LIST:
            self._write_list()
            self._full, self._rows = self._full + 1, []

    def _write_list(self) -> None:
        text = json.dumps(self._rows, ensure_ascii=False, separators=(",", ":"))
        write_whole(
            self.out / INDEX_FILES / f"prompts-{self._full}.js", f"reprise.list({self._full}, {text});\n"
        )

    def _write_state(self, running: bool) -> None:
        tally = self.tally
        state = {
            "count": self._full * IN_A_LIST + len(self._rows),
            "inAList": IN_A_LIST,
            "done": tally.done,
            "total": tally.total,
            "running": running,
            "progress": tally.progress(),
            "facts": tally.facts(),
            "passedOver": tally.passed_over,
            "higherIsBetter": tally.higher_is_better,
        }
        text = json.dumps(state, ensure_ascii=False, allow_nan=False)
        write_whole(self.out / INDEX_FILES / "state.js", f"reprise.state({text});\n")

    def _thumbnail(self, folder: Path, record: Record) -> int:
        """Whether there is one, as 0 or 1."""
        source = picture_path(folder, record.winner.image)
        path = self.out / INDEX_FILES / f"{folder.name}.webp"
        return int(source is not None and save_thumbnail(source, path, INDEX_SIDE))

    def _prompt_page(self, folder: Path, record: Record) -> None:
        """It has the time stamp of its record, so that it is made again only for another one."""
        path = self.out / INDEX_FILES / f"{folder.name}.html"
        stamp = (folder / RECORD).stat().st_mtime_ns
        if is_of(path, stamp):
            return
        view = {**prompt_view(record, partial(_beside, folder)), "id": folder.name, "thumbnail": None}
        write_whole(path, render_page([view], self.tally, running=False, in_overview=True))
        os.utime(path, ns=(stamp, stamp))


def render_page(
    prompts: list[dict[str, Any]],
    tally: Tally,
    running: bool,
    passed_over: list[str] | None = None,
    in_overview: bool = False,
) -> str:
    """One page of the prompts' views (`prompt_view`)."""
    return template("page.html.jinja").render(
        prompts=prompts,
        total=tally.total,
        progress=tally.progress() if running or tally.done < tally.total else "",
        running=running,
        passed_over=passed_over or [],
        in_overview=in_overview,
    )


def _beside(folder: Path, name: str | None, side: int) -> str | None:
    """The address of a picture of a prompt, from a page in `index_files`."""
    if picture_path(folder, name) is None:
        return None
    return quote(f"../{folder.name}/{name}")
