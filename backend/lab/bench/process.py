"""A script of `inside/` in its own process; questions and answers are lines of JSON."""

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
    """`kind` names the process in errors; its stderr is written to a file in `folder`."""

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
        """Send a question; returns the answer. Raises RepriseError, with the last line of stderr, if it
        ended."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # read_answer() raises with the reason
        return self.read_answer()

    def read_answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            lines = self.log.read().strip().splitlines()
            raise RepriseError(f"measuring {self.kind} failed: {lines[-1] if lines else 'no output'}")
        return json.loads(line)

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()
