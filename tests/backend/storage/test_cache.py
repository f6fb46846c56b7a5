"""The content-addressed cache: exact pictures, damaged entries, the limit, a full disk."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys

import pytest
import torch

from reprise.backend.core.errors import BadInput
from reprise.backend.storage.cache import Cache


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def picture(seed: int, side: int = 16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (side, side, 3), generator=generator).float() / 255


def keys(count: int) -> list[str]:
    return [Cache.key("picture", number) for number in range(count)]


def test_keys_depend_on_the_parts_and_their_order():
    assert Cache.key("a", 1, None, {"x": 1, "y": 2.5}) == Cache.key("a", 1, None, {"y": 2.5, "x": 1})
    parts = [("a", "b"), ("ab",), ("a", "b", None), ("b", "a"), ("a,b",)]
    assert len({Cache.key(*each) for each in parts}) == 5
    assert len(Cache.key("\udcff")) == 64


def test_a_picture_is_read_back_bit_for_bit(cache):
    (key,) = keys(1)
    assert cache.get_image(key) is None
    cache.put_image(key, picture(1), {"rows": 12})
    image, notes = cache.get_image(key)
    assert torch.equal(image, picture(1)) and notes == {"rows": "12"}
    cache.put_image(key, picture(2))
    assert torch.equal(cache.get_image(key)[0], picture(2))
    assert [path.suffix for path in cache.folder.rglob("*") if path.is_file()] == [".png"]


def test_scores_are_read_back_exactly(cache):
    (key,) = keys(1)
    assert cache.get_scores(key) is None
    cache.put_scores(key, {"clip": 0.1 + 0.2, "hps": -1.5})
    assert cache.get_scores(key) == {"clip": 0.1 + 0.2, "hps": -1.5}
    with pytest.raises(AssertionError):
        cache.put_scores(key, {"clip": float("nan")})


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[:50],
        lambda b: b[:-30],
        lambda b: b"GIF89a" + b,
        lambda b: b[:60] + bytes([b[60] ^ 255]) + b[61:],
    ],
)
def test_a_damaged_entry_counts_as_missing_and_is_deleted(cache, damage):
    (key,) = keys(1)
    cache.put_image(key, picture(1))
    cache.put_scores(key, {"clip": 0.5})
    for path in list(cache.folder.rglob(f"{key}.*")):
        path.write_bytes(damage(path.read_bytes()))
    assert cache.get_image(key) is None and cache.get_scores(key) is None
    assert not [path for path in cache.folder.rglob("*") if path.is_file()]
    cache.put_image(key, picture(1))
    assert cache.get_image(key) is not None


def test_an_entry_that_cannot_be_read_at_the_moment_stays(cache, monkeypatch):
    """Too many open files: the entry itself may be sound."""
    key = Cache.key("image", 1)
    cache.put_image(key, torch.zeros(2, 2, 3))
    cache.put_scores(key, {"a": 1.0})

    def refused(*given, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("PIL.Image.open", refused)
        patched.setattr("pathlib.Path.read_bytes", refused)
        assert cache.get_image(key) is None and cache.get_scores(key) is None
    assert cache.get_image(key) is not None and cache.get_scores(key) == {"a": 1.0}


def test_without_a_limit_nothing_is_deleted(tmp_path):
    cache, keys = Cache(tmp_path, limit=None), [Cache.key("image", i) for i in range(20)]
    for key in keys:
        cache.put_image(key, torch.zeros(64, 64, 3))
    assert all(cache.get_image(key) is not None for key in keys)
    damaged = next(tmp_path.rglob("*.png"))
    damaged.write_bytes(b"half")
    assert cache.get_image(damaged.stem) is None and damaged.read_bytes() == b"half"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"scores": {}}',
        '{"key": "KEY", "scores": {"a": NaN}}',
        '{"key": "KEY"}',
        '{"key": "KEY", "scores": {"a": "x"}}',
        '{"key": "other", "scores": {}}',
    ],
)
def test_invalid_scores_count_as_missing(cache, text):
    (key,) = keys(1)
    cache.put_scores(key, {})
    next(cache.folder.rglob("*.json")).write_text(text.replace("KEY", key))
    assert cache.get_scores(key) is None


def test_the_entries_unused_for_longest_are_deleted_first(tmp_path):
    cache = Cache(tmp_path)
    names = keys(6)
    for age, name in enumerate(names[:5]):
        cache.put_image(name, picture(age))
        path = next(tmp_path.rglob(f"{name}.png"))
        os.utime(path, (1000 + age, 1000 + age))
        size = path.stat().st_size
    assert cache.get_image(names[0]) is not None  # used just now
    small = Cache(tmp_path, limit=int(size * 4.5))
    small.put_image(names[5], picture(5))
    held = [small.get_image(name) is not None for name in names]
    assert held == [True, False, False, True, True, True]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.png")) <= small.limit


def test_files_of_others_are_never_deleted(tmp_path):
    mine = tmp_path / "ab" / "holiday.png"
    mine.parent.mkdir()
    mine.write_bytes(b"x" * 100_000)
    os.utime(mine, (0, 0))
    cache = Cache(tmp_path, limit=50_000)
    for number, name in enumerate(keys(3)):
        cache.put_image(name, picture(number))
    assert mine.is_file() and all(cache.get_image(name) is not None for name in keys(3))


def test_a_recount_includes_what_other_processes_wrote(tmp_path):
    names = keys(8)
    mine = Cache(tmp_path, limit=10**9)
    mine.put_image(names[0], picture(0))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.png"))
    mine.limit = int(size * 4.5)
    other = Cache(tmp_path)
    for number, name in enumerate(names[1:7], start=1):
        other.put_image(name, picture(number))
    mine.recount()
    mine.put_image(names[7], picture(7))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.png")) <= mine.limit


def test_a_limit_below_one_entry_stores_nothing(tmp_path):
    cache = Cache(tmp_path, limit=10)
    cache.put_image(keys(1)[0], picture(1))
    assert cache.get_image(keys(1)[0]) is None
    with pytest.raises(BadInput):
        Cache(tmp_path, limit=-1)


def test_a_full_disk_warns_once_and_the_work_continues(cache, monkeypatch, caplog):
    names = keys(3)
    cache.put_image(names[0], picture(0))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        cache.put_image(names[1], picture(1))
        cache.put_image(names[2], picture(2))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text
    assert cache.get_image(names[0]) is not None and cache.get_image(names[1]) is None
    assert len([path for path in cache.folder.rglob("*") if path.is_file()]) == 1  # no part left behind


def test_a_cache_whose_folder_is_a_file_stores_nothing(tmp_path, caplog):
    (tmp_path / "taken").write_text("x")
    cache = Cache(tmp_path / "taken")
    cache.put_scores(keys(1)[0], {"a": 1.0})
    assert cache.get_scores(keys(1)[0]) is None and "going on without it" in caplog.text


def test_importing_the_cache_loads_no_library():
    code = "import sys, reprise.backend.storage.cache; print({'torch', 'PIL', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_flipped_bit_of_a_picture_goes_unnoticed(tmp_path):
    """Loading a PNG alone compares no checksum: one flipped bit in thirteen gave another picture."""
    cache, key = Cache(tmp_path, limit=None), "ab" * 32
    ramp = torch.linspace(0, 1, 48 * 48).reshape(48, 48, 1)
    cache.put_image(key, torch.cat([ramp, ramp**2, 1 - ramp], 2))
    path, (expected, _) = next(tmp_path.rglob("*.png")), cache.get_image(key)
    whole = path.read_bytes()
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = cache.get_image(key)
        assert found is None or torch.equal(found[0], expected), at


def test_only_entries_are_deleted_to_make_room(tmp_path):
    cache = Cache(tmp_path, limit=3000)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "holiday.png").write_bytes(b"x" * 5000)
    for number in range(9):
        cache.put_scores(f"{number:064x}", {"a" * 400: 1.0})
    assert (tmp_path / "my" / "holiday.png").stat().st_size == 5000
    assert 0 < len(list(tmp_path.rglob("*.json"))) < 9
