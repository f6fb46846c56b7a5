"""Every long command, with everything that can go wrong meanwhile: nothing lost, nothing silently other.

`make test` tries the few of `SHORT`, `make faults` all, and prints a table. docs/reliability.md says what is
promised.
"""

import pytest

from .harness import RIGHT
from .plan import plan

SHORT = (
    "render: killed, kill -9 at 50%",
    "render: killed, inside a write at 70%",
    "render: told to stop, SIGTERM at 40%",
    "render: damaged file, */candidates/*.png: 64 bytes flipped",
    "render: two processes, the second at 50%",
    "render: foreign files, index.html",
    "render: foreign files, another command into the same place",
    "render, chat: server, hangs up after two answers",
    "train sft: killed, kill -9 before it has begun",
    "train sft: killed, kill -9 at 50%",
    "train sft: full disk, files cannot grow from 35%",
    "train sft: read error, checkpoints/*/trainer_state.json",
    "train sft: damaged file, checkpoints/*/model.safetensors: 64 bytes flipped",
    "preferences mine: killed, kill -9 at 50%",
)


def cases():
    injections = plan()
    assert {one.name for one in injections} >= set(SHORT)
    for injection in injections:
        marks = [pytest.mark.xdist_group(injection.command)]
        if injection.name not in SHORT:
            marks.append(pytest.mark.faults)
        yield pytest.param(injection, id=injection.name, marks=marks)


@pytest.mark.parametrize("injection", cases())
def test_fault(injection, bench, record_property):
    found = injection.happen(bench)
    for name, value in {
        "command": injection.command,
        "kind": injection.kind,
        "verdict": found.verdict,
    }.items():
        record_property(name, value)
    if found.verdict not in RIGHT:
        pytest.fail(f"{found.verdict}: {found.why}", pytrace=False)
