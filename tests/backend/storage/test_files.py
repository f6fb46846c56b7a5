"""Lines of JSON: a damaged one is named by its file and number, whatever is wrong with it."""

import errno
from pathlib import Path

import pytest

from reprise.backend.core.errors import BadInput, DiskFull
from reprise.backend.storage.files import is_disk_full, read_json, read_lines, write_whole


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON"),
        (b"\x00\x00\x00", "not JSON"),
        (b"[1]", "expected a JSON object"),
        (b'"a"', "expected a JSON object"),
        (b'{"step": "2"}', "expected 'step' with a whole number"),
        (b"{}", "expected 'step' with a whole number"),
        (b'{"step": 2, "x": "\xff\xfe"}', r"not UTF-8 text \(byte 18\)"),
        (b"[" * 100_000, "not JSON"),
        (b'{"step": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_damaged_line_is_named(line, why, tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(BadInput, match=f"lines.jsonl, line 2: {why}.*; delete this line") as caught:
        read_lines(file, needs={"step": int})
    assert "\n" not in str(caught.value)


def test_blank_lines_and_a_half_last_one_are_left_out(tmp_path):
    (tmp_path / "lines").write_bytes(b'{"a": 1}\n\n{"a": 2}\n{"a": \xff')
    assert read_lines(tmp_path / "lines") == [{"a": 1}, {"a": 2}]
    assert read_lines(tmp_path / "none") == []


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def broken(self):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(BadInput, match="cannot read .*lines: Input/output error"):
        read_lines(tmp_path / "lines")


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[]", b'{"pairs": "two"}', b""])
def test_a_damaged_json_file_is_named(data, tmp_path):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(BadInput, match=r"a\.json: .*; delete it"):
        read_json(tmp_path / "a.json", "delete it", {"pairs": int})


def test_what_says_that_the_disk_is_full(tmp_path, monkeypatch):
    words = (
        "[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598",
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "Error while serializing: I/O error: File too large (os error 27)",
    )
    assert all(is_disk_full(RuntimeError(text)) for text in words)
    assert not is_disk_full(RuntimeError("PytorchStreamReader failed reading zip archive"))
    assert not is_disk_full(OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(errno.EFBIG, "too large")))
    with pytest.raises(DiskFull) as caught:
        write_whole(tmp_path / "a", b"a")
    assert is_disk_full(caught.value) and not list(tmp_path.iterdir())
