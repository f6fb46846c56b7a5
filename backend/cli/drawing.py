"""Prompt after prompt of `reprise render`: what is finished is kept, pages and progress follow.

Memory and output do not grow with the number of prompts: records are written, counted and let go.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ..core.errors import BadInput, Interrupted, RepriseError
from ..reports.build import number_text
from ..reports.render_pages import IN_ONE_FILE, RenderPages
from ..reports.tally import Tally, duration
from ..storage.records import BEST, RECORD, Record, finished_record, load_record, save_outcome
from . import terminal

if TYPE_CHECKING:
    from ..search.chain import Chain


@dataclass
class Drawing:
    """Draws the prompts of `folders`, prompt -> its folder, into `out`."""

    chain: Chain
    folders: dict[str, Path]
    settings: dict[str, Any]
    versions: dict[str, str]
    out: Path
    redo: bool
    finished: list[Path] = field(default_factory=list)
    """The folders of the finished prompts, in their order."""

    def __post_init__(self) -> None:
        self.tally = Tally(len(self.folders))
        self.pages = RenderPages(self.out, self.tally)
        self.many = len(self.folders) > IN_ONE_FILE
        self.note = terminal.few_notes(IN_ONE_FILE)
        self.started = time.monotonic()

    def run(self) -> None:
        """Draw what is not finished. A prompt that cannot be judged is passed over where there are more.

        Whatever happens, the page shows what is finished when this is left.
        """
        first = None
        try:
            with terminal.stage_progress(self.tally if len(self.folders) > 1 else None) as start:
                for prompt, folder in self.folders.items():
                    try:
                        self._one(prompt, folder, start)
                    except BadInput as error:
                        if len(self.folders) == 1:
                            raise
                        first = first or prompt
                        self.note(f"passed over: {error}")
                        self.tally.pass_over()
                        self._page(self.pages.pass_over, prompt, str(error))
        except (KeyboardInterrupt, Interrupted) as stop:
            raise Interrupted(
                f"stopped; {len(self.finished)} of {len(self.folders)} prompts are finished in {self.out}; "
                f"the same command with --out {shlex.quote(str(self.out))} goes on with the rest"
            ) from stop
        finally:
            self._page(self.pages.close)
        if first is not None:
            raise BadInput(
                f"{self.tally.passed_over} of {len(self.folders)} prompts could not be judged, the rest is "
                f"in {self.out}; the first was {first[:80]!r}"
            )

    def _one(self, prompt: str, folder: Path, start: terminal.Start) -> None:
        """Draw one prompt, or keep it. Raises BadInput if it cannot be judged."""
        record = None if self.redo else finished_record(folder, prompt, self.settings, self.note)
        kept = record is not None
        if kept and not self.many:
            self.note(f"kept: {prompt} ({folder})")
        if record is None:
            if self.tally.kept and not self.tally.drawn and self.many:
                self.note(f"kept: {self.tally.kept:,} finished prompts")
            outcome = self.chain.run(prompt, start(prompt))
            record = save_outcome(folder, outcome, self.settings, self.versions, self.note)
        self.tally.add(record, kept)
        self.finished.append(folder)
        self._page(self.pages.add, folder, record)

    def _page(self, write: Callable[..., None], *about: Any) -> None:
        """The pages are made of the records: where they cannot be written, the run itself is not lost."""
        try:
            write(*about)
        except RepriseError as error:
            self.note(f"no page: {error}")

    def print_json(self, as_list: bool) -> None:
        """The records on stdout, one in memory at a time; an object for one that is no list."""
        records = (load_record(folder / RECORD).model_dump(mode="json") for folder in self.finished)
        if as_list:
            terminal.print_json_list(records)
        else:
            terminal.print_json(next(records))

    def print_summary(self) -> None:
        """What became of each prompt; of many prompts, of all together."""
        if self.many:
            _print_all(self.tally, time.monotonic() - self.started)
        else:
            for folder in self.finished:
                _print_one(folder, load_record(folder / RECORD))
        terminal.out().print(f"open [bold]{escape(str(self.pages.path))}[/bold]", soft_wrap=True)


def _print_all(tally: Tally, seconds: float) -> None:
    out = terminal.out()
    counts = [f"{tally.drawn:,} drawn"] * bool(tally.drawn) + [f"{tally.kept:,} kept"] * bool(tally.kept)
    out.print(f"[bold]{tally.total:,} prompts[/bold]: {', '.join(counts)}, in {duration(seconds)}")
    facts = [f"[bold green]{value}[/bold green] {name}" for value, name in tally.facts()]
    if facts:
        out.print("  " + " · ".join(facts), soft_wrap=True)
    weakest = tally.lowest if tally.higher_is_better else tally.highest
    if weakest:
        out.print(f"  the weakest, {number_text(weakest[0])}: {escape(weakest[1])}", soft_wrap=True)


def _print_one(folder: Path, record: Record) -> None:
    """What became of one prompt, in a few lines."""
    cost, out = record.cost, terminal.out()
    out.print(f"[bold]{escape(record.prompt)}[/bold]", soft_wrap=True)
    out.print(f"  drawn as  {escape(record.winner.prompt)}", soft_wrap=True)
    parts = [f"best [bold green]{record.winner.score or 0:.2f}[/bold green]"]
    if any(c.score is not None and c.round == 0 for c in record.candidates):
        stopped = sum(c.pruned_at is not None for c in record.candidates)
        parts.append(f"{len(record.candidates)} candidates, {stopped} stopped early")
    if record.reflection:
        first, last = record.reflection[0], record.reflection[-1]
        rounds = len(record.reflection) - 1
        parts.append(f"{rounds} round{'s' if rounds != 1 else ''} of mending" if rounds else "right at once")
        if rounds:
            best = max(r.score for r in record.reflection)
            parts[-1] += f" ({first.score:.2f} → {best:.2f}, right: {last.verdict})"
    share = cost.denoiser_rows / max(1, cost.denoiser_rows_full)
    parts.append(f"{share:.0%} of the full cost, {cost.seconds.get('total', 0):.1f} s")
    out.print("  " + " · ".join(parts), soft_wrap=True)
    out.print(f"  {escape(str(folder / BEST))}", soft_wrap=True)
