"""Which faults are tried on which command. One line of the plan is one case of `test_faults.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from . import clients, damage, harness, services
from .commands import COMMANDS, Command
from .faults import READ, Fault

KILLED, TOLD, DISK, READING, DAMAGED = "killed", "told to stop", "full disk", "read error", "damaged file"
CLOCK, TWICE, FOREIGN, SERVER = "clock", "two processes", "foreign files", "server"
KINDS = (KILLED, TOLD, DISK, READING, DAMAGED, CLOCK, TWICE, FOREIGN, SERVER)


@dataclass(frozen=True)
class Injection:
    command: str
    kind: str
    label: str
    happen: Callable[[harness.Bench], harness.Outcome]

    @property
    def name(self) -> str:
        return f"{self.command}: {self.kind}, {self.label}"


def plan() -> list[Injection]:
    return [*(injection for command in COMMANDS for injection in _of(command)), *_of_the_server()]


def _of_the_server() -> Iterator[Injection]:
    def at(kind: str, label: str, try_out: Callable[..., harness.Outcome], *arguments: object) -> Injection:
        return Injection(clients.NAME, kind, label, lambda bench: try_out(bench, *arguments))

    yield at(KILLED, "kill -9", clients.ended, "SIGKILL")
    for name in ("SIGTERM", "SIGINT"):
        yield at(TOLD, name, clients.ended, name)
    yield at(TWICE, "a second at its port", clients.taken)
    yield at(SERVER, "stands still for a second", clients.paused)
    for label, request in clients.REQUESTS.items():
        yield at(SERVER, label, clients.asked, request)
    for label, pester in clients.PESTS.items():
        yield at(SERVER, label, clients.pestered, pester)


def _of(command: Command) -> Iterator[Injection]:
    def at(kind: str, label: str, try_out: Callable[..., harness.Outcome], *arguments: object) -> Injection:
        def happen(bench: harness.Bench) -> harness.Outcome:
            return try_out(bench, command, *arguments)

        return Injection(command.name, kind, label, happen)

    if command.asks:
        for label, fault in services.AT_START[command.asks].items():
            yield at(SERVER, label, harness.served_badly, fault)
        for label, fault in services.AT_WORK[command.asks].items():
            yield at(SERVER, f"it {label} at 40%", harness.left_alone, 0.4, fault)
    if not command.asks or command.kept:
        yield from _of_the_disk(command, at)


def _of_the_disk(command: Command, at: Callable[..., Injection]) -> Iterator[Injection]:
    training = command.name.startswith("train")
    # What trainings have in common is tried on one in full; each takes seconds where others take tenths.
    in_full = not training or command.name == "train sft"
    if training:
        fault = Fault("SIGKILL", name=f"{command.out}/checkpoints/config.yaml")
        yield at(KILLED, "kill -9 before it has begun", harness.killed_in, fault)
        fault = Fault("SIGKILL", name=f"{command.out}/*final.part*")
        yield at(KILLED, "kill -9 after its last checkpoint", harness.killed_in, fault)
    for share in (0.1, 0.5, 0.9) if in_full else (0.7,):
        yield at(KILLED, f"kill -9 at {share:.0%}", harness.killed, share)
    for share in (0.3, 0.7) if in_full else (0.45,):
        yield at(KILLED, f"inside a write at {share:.0%}", harness.killed, share, "torn")
    yield at(TOLD, "SIGTERM at 40%", harness.killed, 0.4, "SIGTERM")
    if in_full:
        yield at(TOLD, "SIGINT at 60%", harness.killed, 0.6, "SIGINT")
        yield at(TOLD, "nobody reads its output", harness.unread)
    yield at(DISK, "no space at 65%", harness.failing_at, 0.65, "ENOSPC")
    if in_full:
        yield at(DISK, "files cannot grow from 35%", harness.failing_at, 0.35, "full")
        yield at(DISK, "write error at 55%", harness.failing_at, 0.55, "EIO")
    for name in command.kept:
        short = name.removeprefix(f"{command.out}/")
        if in_full or name.endswith("trainer_state.json"):
            fault = Fault("EIO", on=READ, name=name)
            yield at(READING, short, partial(harness.failing, begun="half"), fault)
        for change in _damages(name) if in_full else _damages(name)[:1]:
            if in_full or name.endswith((".jsonl", ".safetensors", "optimizer.pt")):
                yield at(DAMAGED, f"{short}: {damage.NAMES[change]}", harness.damaged, name, change)
    if in_full:
        yield at(CLOCK, "a year back", harness.clock, -3.2e7)
    yield at(TWICE, "the second at 50%", harness.together, 0.5)
    if command.other:
        yield at(FOREIGN, "another command into the same place", harness.with_other_settings, command.other)
    for name in command.claimed if in_full else command.claimed[:1]:
        yield at(FOREIGN, name.removeprefix(f"{command.out}/"), harness.beside, name)


def _damages(name: str) -> tuple[Callable, ...]:
    if name.endswith(".jsonl"):
        return (damage.garble, damage.misencode)
    if name.endswith(".yaml"):
        return (damage.empty, damage.flip)
    return (damage.flip, damage.cut)
