"""What becomes of a command with a fault in it: one word, and why.

A command without faults leaves its *result*. With a fault it may

    survive   it leaves the same result, or, killed or stopped, goes on to it
    refuse    it says in one line what is wrong, and goes on to that result when the fault is gone
    lose      the result can no longer be had, or a file that it did not write is gone or changed
    alter     it ends as if all were well, and leaves another result
    break     a traceback, no word or too many, or no end

The first two are right. Nothing else is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .commands import Command, make_inputs
from .faults import Fault, happened
from .process import Ended, Run, run
from .services import KINDS, Service

SURVIVED, REFUSED, LOST, ALTERED, BROKEN = "survived", "refused", "lost", "altered", "broken"
RIGHT = (SURVIVED, REFUSED)
STOPPED = {"SIGINT": 130, "SIGTERM": 143}  # exit codes of a command that was told to stop
UNREAD = 141  # and of one whose output nobody reads
OWN = "mine.txt"  # a file of the user's own, which nothing may touch


@dataclass(frozen=True)
class Outcome:
    verdict: str
    why: str = ""


class Bench:
    """Makes what the cases of commands share, once: inputs, results, and folders of runs half-way."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._made: dict[tuple[str, str], Path] = {}
        self._services: dict[str, Service] = {}

    def service(self, command: Command) -> Service:
        """The server that the command asks."""
        if command.asks not in self._services:
            self._services[command.asks] = KINDS[command.asks](self.folder)
        return self._services[command.asks]

    def words(self, line: str, command: Command) -> list[str]:
        """A command line in words, with the address of its server."""
        return shlex.split(line.replace("URL", self.service(command).url) if command.asks else line)

    def close(self) -> None:
        for service in self._services.values():
            service.stop()

    def case(self, command: Command, begun: str = "inputs") -> Path:
        """A new folder with the command's inputs, or with its run "half" done, or "done"."""
        source = self.get(command, begun)
        case = self.folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(source, case, symlinks=True)
        return case

    def result(self, command: Command) -> dict[str, str]:
        return contents(self.get(command, "done"), command.result)

    def operations(self, command: Command) -> int:
        """How many files the command writes, renames and deletes, from nothing to its end."""
        log = self.get(command, "done").with_suffix(".log")
        return sum(line.startswith("write") for line in log.read_text().splitlines())

    def get(self, command: Command, begun: str) -> Path:
        key = ("", begun) if begun == "inputs" else (command.name, begun)
        if key not in self._made:
            made = self.folder / f"{key[0]}.{begun}".replace(" ", "-").replace(",", "")
            shutil.rmtree(made, ignore_errors=True)  # an earlier try that failed
            if begun == "inputs":
                made.mkdir()
                make_inputs(made)
            else:
                shutil.copytree(self.get(command, "inputs"), made)
                (made / OWN).write_text("mine\n")
                getattr(self, f"_make_{begun}")(command, made)
            self._made[key] = made
        return self._made[key]

    def _make_done(self, command: Command, folder: Path) -> None:
        ended = run(self.words(command.line, command), folder, log=folder.with_suffix(".log"))
        assert ended.code == 0, f"reprise {command.line}\n{ended.stderr}"

    def _make_half(self, command: Command, folder: Path) -> None:
        fault = command.half or Fault("SIGKILL", at=self.operations(command) * 6 // 10)
        ended = run(self.words(command.line, command), folder, fault)
        assert ended.code == -signal.SIGKILL, f"it was to be killed half-way: {ended}"


def contents(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """What lies in files, as a hash by name: JSON without times, pages only by their being there."""
    found = {}
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        if path.name.endswith(".part"):  # what a kill leaves of a file, beside it
            continue
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        if path.suffix == ".html":
            data = b""
        elif path.suffix in (".json", ".jsonl"):
            data = _timeless(data)
        found[name] = hashlib.sha256(data).hexdigest()[:12]
    return found


def _timeless(data: bytes) -> bytes:
    try:
        rows = [json.loads(line) for line in data.splitlines()]
    except ValueError:
        try:
            rows = json.loads(data)
        except ValueError:
            return data
    return json.dumps(_without_times(rows)).encode()


def _without_times(value: Any) -> Any:
    """Without how long things took, and how many pictures came from the cache."""
    if isinstance(value, list):
        return [_without_times(one) for one in value]
    if isinstance(value, dict):
        return {
            key: _without_times(one)
            for key, one in value.items()
            if "seconds" not in key and not (key.startswith("pictures") and not isinstance(one, list))
        }
    return value


def differences(expected: dict[str, str], found: dict[str, str]) -> str:
    """The files in which two results differ, in words; nothing where they are equal."""
    parts = {
        "gone": [name for name in expected if name not in found],
        "new": [name for name in found if name not in expected],
        "other": [name for name in expected if name in found and found[name] != expected[name]],
    }
    return "; ".join(f"{word}: {', '.join(names[:4])}" for word, names in parts.items() if names)


class Case:
    """One command in a folder of its own, and what its result should be."""

    def __init__(self, bench: Bench, command: Command, begun: str = "inputs"):
        self.command, self.expected = command, bench.result(command)
        self.folder = bench.case(command, begun)
        self.first = bench.words(command.line, command)
        self.next = bench.words(command.again or command.line, command)
        self.line = self.next if begun == "half" else self.first
        self.ignored: set[str] = set()
        (self.folder / OWN).write_text("mine\n")

    def run(self, fault: Fault | None = None) -> Ended:
        happened(self.folder).unlink(missing_ok=True)
        ended = run(self.line, self.folder, fault)
        if fault is not None and fault.what:
            assert happened(self.folder).exists(), f"the fault did not happen: {fault}"
        return ended

    def compare(self) -> str:
        if not (self.folder / OWN).is_file():
            return f"gone: {OWN}"
        found = contents(self.folder, self.command.result)
        parts = ({k: v for k, v in one.items() if k not in self.ignored} for one in (self.expected, found))
        return differences(*parts)

    def judge(self, ended: Ended, before: set[str] | None = None) -> Outcome | None:
        """The outcome of a run with a fault, as far as it is decided; None: it refused, in one line."""
        if ended.code is None:
            return Outcome(BROKEN, f"no end: {_last(ended)}")
        if ended.crashed:
            return Outcome(BROKEN, _last(ended))
        if ended.code == 0:
            other = self.compare()
            return Outcome(ALTERED, f"{other}; {_last(ended)}") if other else Outcome(SURVIVED)
        if ended.code < 0 or len(ended.refusals) != 1:
            return Outcome(BROKEN, f"exit {ended.code}, {len(ended.refusals)} lines of why: {_last(ended)}")
        if ended.code not in (1, 2):
            return Outcome(BROKEN, f"exit {ended.code}: {_last(ended)}")
        gone = (before or set()) - self.files()
        return Outcome(LOST, f"gone: {', '.join(sorted(gone)[:4])}; {_last(ended)}") if gone else None

    def go_on(self, verdict: str, said: str = "") -> Outcome:
        """The outcome of the same command again, without a fault: `verdict` where it comes to its result."""
        ended = run(self.next, self.folder)
        if ended.code != 0 and self.next != self.first:  # it had not begun
            later = run(self.first, self.folder)
            ended = later if later.code == 0 else ended
        if ended.code != 0:
            return Outcome(LOST, f"it does not go on: exit {ended.code}: {_last(ended)}; before: {said}")
        other = self.compare()
        if other:
            return Outcome(ALTERED, f"gone on to another result: {other}; before: {said}")
        return Outcome(verdict, said)

    def files(self) -> set[str]:
        """All files but those that are being written, tensorboard's, and who is at work in a folder."""
        return {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file()
            and not path.name.endswith((".part", ".lock"))
            and not {"tensorboard", ".reprise"} & set(path.parts)
        }


def _last(ended: Ended) -> str:
    return " | ".join(ended.stderr.strip().splitlines()[-3:])[-500:]


# The ways in which faults are tried


def killed(bench: Bench, command: Command, share: float, what: str = "SIGKILL") -> Outcome:
    """Ended by a signal when `share` of its operations are done; then called again."""
    return killed_in(bench, command, Fault(what, at=int(share * bench.operations(command))))


def killed_in(bench: Bench, command: Command, fault: Fault) -> Outcome:
    case, what = Case(bench, command), fault.what
    ended = case.run(fault)
    if what in STOPPED:
        if ended.crashed or ended.code != STOPPED[what] or len(ended.refusals) != 1:
            return Outcome(
                BROKEN, f"exit {ended.code}, expected {STOPPED[what]} and one line: {_last(ended)}"
            )
    else:
        assert ended.code is not None and ended.code < 0, f"it was to be killed: {ended}"
    return case.go_on(SURVIVED, _last(ended))


def failing(bench: Bench, command: Command, fault: Fault, begun: str = "inputs") -> Outcome:
    """With one file operation that fails; then called again."""
    case = Case(bench, command, begun)
    before = case.files()
    ended = case.run(fault)
    return case.judge(ended, before) or case.go_on(REFUSED, _last(ended))


def failing_at(bench: Bench, command: Command, share: float, what: str) -> Outcome:
    return failing(bench, command, Fault(what, at=int(share * bench.operations(command))))


def damaged(bench: Bench, command: Command, name: str, damage: Callable[[Path], None]) -> Outcome:
    """Called again after a file of a run half-way was damaged; refused, once more with the file whole."""
    case = Case(bench, command, "half")
    found = sorted(case.folder.glob(name), key=_number)
    assert found, f"a run half-way has no {name}"
    path = found[-1]
    kept, before = path.read_bytes(), case.files()
    damage(path)
    ended = case.run()
    decided = case.judge(ended, before)
    if decided is not None:
        return decided
    if path.name not in ended.refusals[0] and path.parent.name not in ended.refusals[0]:
        return Outcome(BROKEN, f"it does not name {path.name}: {_last(ended)}")
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(kept)
    return case.go_on(REFUSED, _last(ended))


def _number(path: Path) -> list[Any]:
    """Sorts checkpoint-10 after checkpoint-9."""
    return [
        (int(part) if part.isdigit() else -1, part) for part in path.as_posix().replace("-", "/").split("/")
    ]


def clock(bench: Bench, command: Command, seconds: float) -> Outcome:
    """The clock jumps between the first half and the second, and the files are from another time."""
    case = Case(bench, command, "half")
    for path in case.folder.rglob("*"):
        os.utime(path, (1e9, 1e9) if seconds > 0 else (4e9, 4e9))
    ended = case.run(Fault("", clock=seconds))
    return case.judge(ended) or case.go_on(REFUSED, _last(ended))


def together(bench: Bench, command: Command, share: float) -> Outcome:
    """A second process begins in the same place while the first is at work; then the first ends."""
    case = Case(bench, command)
    at = int(share * bench.operations(command))
    first = Run(case.line, case.folder, Fault("SIGSTOP", at=at))
    try:
        first.wait_until_stopped()
        second = Run(case.line, case.folder)
        said = second.wait_or_none(20)  # it may wait for the first
    finally:
        first.send(signal.SIGCONT)
    done = first.wait()
    said = said or second.wait()
    if done.code != 0 or done.crashed:
        return Outcome(LOST if not done.crashed else BROKEN, f"the first: exit {done.code}: {_last(done)}")
    if said.code == 0:
        other = case.compare()
        return Outcome(ALTERED, f"both exit 0; {other}") if other else Outcome(SURVIVED)
    decided = case.judge(said)
    if decided is not None:
        return decided
    other = case.compare()
    return Outcome(LOST, f"the first's: {other}") if other else case.go_on(REFUSED, _last(said))


def unread(bench: Bench, command: Command) -> Outcome:
    """Nobody reads what it prints, as with `| head`."""
    case = Case(bench, command)
    ended = Run(case.line, case.folder, heard=False).wait()
    if ended.code != UNREAD:
        return case.judge(ended) or Outcome(BROKEN, f"exit {ended.code}: {_last(ended)}")
    return Outcome(BROKEN, _last(ended)) if ended.crashed else case.go_on(SURVIVED)


def with_other_settings(bench: Bench, command: Command, line: str) -> Outcome:
    """When it is done, another command writes to the same place: every picture and record is still there."""
    case = Case(bench, command, "done")
    ended = run(shlex.split(line), case.folder)
    left = {hashlib.sha256(path.read_bytes()).digest() for path in case.folder.rglob("*") if path.is_file()}
    done = bench.get(command, "done")
    lost = [
        path.relative_to(done).as_posix()
        for pattern in command.result
        for path in done.glob(pattern)
        if path.suffix != ".html" and hashlib.sha256(path.read_bytes()).digest() not in left
    ]
    if lost:
        return Outcome(LOST, f"exit {ended.code}, gone: {', '.join(lost[:4])}; {_last(ended)}")
    if ended.code == 0 and not ended.crashed:
        return Outcome(SURVIVED)
    return case.judge(ended) or Outcome(REFUSED, _last(ended))


def beside(bench: Bench, command: Command, name: str) -> Outcome:
    """A file of the user's own lies where the command is about to write."""
    case, words = Case(bench, command), b"my own work\n"
    path = case.folder / name
    made = [one for one in path.parents if not one.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(words)
    ended = case.run()
    if not path.is_file() or path.read_bytes() != words:
        aside = [one for one in path.parent.rglob("*") if one.is_file() and one.read_bytes() == words]
        if not any(one.name in ended.stderr for one in aside):  # kept aside, and said so
            return Outcome(LOST, f"{name} was overwritten: exit {ended.code}: {_last(ended)}")
    elif ended.code == 0:
        case.ignored.add(name)
    decided = case.judge(ended)
    if decided is not None:
        return decided
    path.unlink()
    for folder in made:
        if not any(folder.iterdir()):
            folder.rmdir()
    return case.go_on(REFUSED, _last(ended))


def served_badly(bench: Bench, command: Command, fault: Callable[[Any], None]) -> Outcome:
    """Its server is at fault from the start, and then is not."""
    case, service = Case(bench, command), bench.service(command)
    try:
        fault(service)
        before, ended = case.files(), case.run()
    finally:
        service.heal()
    return case.judge(ended, before) or case.go_on(REFUSED, _last(ended))


def left_alone(bench: Bench, command: Command, share: float, fault: Callable[[Any], None]) -> Outcome:
    """Something happens to its server when `share` of its operations are done."""
    case, service = Case(bench, command), bench.service(command)
    at_work = Run(case.line, case.folder, Fault("SIGSTOP", at=int(share * bench.operations(command))))
    try:
        at_work.wait_until_stopped()
        before = case.files()
        fault(service)
        at_work.send(signal.SIGCONT)
        ended = at_work.wait()
    finally:
        service.heal()
    return case.judge(ended, before) or case.go_on(REFUSED, _last(ended))
