"""Every long command, with everything that can go wrong meanwhile: nothing lost, nothing silently other.

`make test` tries the few of `SHORT`, `make faults` all, and prints a table. docs/reliability.md says what is
promised.
"""

import pytest

from .harness import RIGHT
from .plan import plan

SHORT = ()


def cases():
    for injection in plan():
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
