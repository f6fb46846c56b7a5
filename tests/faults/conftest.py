"""The bench that the cases share, and the table of what became of them, printed at the end."""

import pytest

from .harness import Bench
from .table import table


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


def pytest_terminal_summary(terminalreporter):
    found = [
        dict(report.user_properties)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call" and dict(report.user_properties).get("verdict")
    ]
    if found:
        terminalreporter.section("faults")
        terminalreporter.write_line(table(found))
