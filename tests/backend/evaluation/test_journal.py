"""The journal: rows of earlier calls, incomplete lines, files of something else."""

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.evaluation.journal import Journal


def test_rows_of_an_earlier_call_are_read_back(tmp_path):
    kept = Journal(tmp_path / "lines")
    kept.add([{"a": 1}, {"a": "é"}])
    kept.add([])
    kept.add([{"a": 3}])
    assert Journal(tmp_path / "lines").rows == kept.rows == [{"a": 1}, {"a": "é"}, {"a": 3}]
    assert len((tmp_path / "lines").read_text().splitlines()) == 3


def test_an_incomplete_last_line_is_removed(tmp_path):
    (tmp_path / "lines").write_text('{"a": 1}\n{"a"')
    kept = Journal(tmp_path / "lines")
    kept.add([{"a": 2}])
    assert Journal(tmp_path / "lines").rows == [{"a": 1}, {"a": 2}]


def test_a_file_that_is_not_json_lines_is_refused(tmp_path):
    (tmp_path / "lines").write_text('{"a": 1}\na letter\n{"a": 3}\n')
    with pytest.raises(BadInput, match="lines, line 2: not JSON .*; delete this line"):
        Journal(tmp_path / "lines")


def test_without_a_file_rows_stay_in_memory():
    kept = Journal(None)
    kept.add([{"a": 1}])
    assert kept.rows == [{"a": 1}]
