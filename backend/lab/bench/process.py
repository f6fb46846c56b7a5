"""A script of `inside/` at work in a process of its own; it is asked and answers in lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...core.errors import RepriseError

PACK = Path(__file__).resolve().parents[3]
P = TypeVar("P", bound="Process")


class Process:
    """`kind` names it in errors; what the script prints to stderr goes to a file in `folder`."""

    def __init__(self, kind: str, command: Sequence[str | Path], folder: Path):
        self.kind, self.log = kind, (folder / f"{kind}.log").open("w+", errors="replace")
        self.process = subprocess.Popen(
            [*map(str, command)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, "REPRISE_ROOT": str(PACK)},
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Raises RepriseError with the last that it said where the script broke."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # hear() says why it ended
        return self.read_answer()

    def read_answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            said = self.log.read().strip().splitlines()
            raise RepriseError(f"measuring {self.kind} failed: {said[-1] if said else 'it said nothing'}")
        return json.loads(line)

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()
