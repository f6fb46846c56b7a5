"""Folders that commands write to: held by one process, and what others put there is left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.storage import outputs
from reprise.backend.storage.files import prepare_folder, write_whole

HOLD = """
import sys, time
from pathlib import Path
from reprise.backend.storage.outputs import claim
with claim(Path(sys.argv[1]), "render"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder o."""
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "o")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_that_another_process_writes_is_refused_with_its_name(holder, tmp_path):
    with pytest.raises(BadInput, match=f"being written by process {holder.pid} on .+ since 2.+another --out"):
        with outputs.claim(tmp_path / "o", "render"):
            pytest.fail("held twice")
    held = json.loads((tmp_path / "o" / ".reprise" / "holder.json").read_text())
    assert held["pid"] == holder.pid, "the refused process left the holder's note alone"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_process_that_is_gone_is_no_obstacle(holder, tmp_path, how):
    holder.send_signal(how)
    holder.wait()
    with outputs.claim(tmp_path / "o", "render"):
        held = json.loads((tmp_path / "o" / ".reprise" / "holder.json").read_text())
        assert held["pid"] == os.getpid()
    assert not (tmp_path / "o" / ".reprise" / "holder.json").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from reprise.backend.storage.files import write_whole
from reprise.backend.storage.outputs import claim

out = Path(sys.argv[1])
with claim(out, "render"):
    write_whole(out / "whole", "whole")
    os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
    write_whole(out / "candidates" / "0.png", "half")
"""


def test_half_written_files_of_a_killed_process_are_removed_and_no_others(tmp_path):
    out, inner = tmp_path / "o", tmp_path / "o" / "inner"
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    (half,) = (out / "candidates").iterdir()
    others = [out / ".a1b2c3d4.part", out / "film.part", out / ".reprise-film.part", tmp_path / half.name]
    with outputs.claim(inner, "render"):  # held by another process, for all that `out` knows
        others.append(inner / half.name)
        for other in others:
            other.write_text("half")
        with outputs.claim(out, "render"):
            assert not half.exists() and (out / "whole").read_text() == "whole"
            assert all(other.read_text() == "half" for other in others)
            half.write_text("half")
        with outputs.claim(out, "render"):
            assert half.exists(), "nobody was killed: nothing is looked for"


def test_one_process_may_hold_a_folder_twice_and_again(tmp_path):
    for _ in range(2):
        with outputs.claim(tmp_path / "o", "render"), outputs.lock(tmp_path / "o"):
            (tmp_path / "o" / "a").write_text("")


def test_a_call_that_writes_nothing_leaves_nothing(tmp_path):
    with outputs.claim(tmp_path / "a" / "b", "render"):
        pass
    with pytest.raises(ZeroDivisionError):
        with outputs.claim(tmp_path / "a" / "b", "render"):
            raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with outputs.claim(tmp_path / "mine", "render"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"], "a folder of the user's own stays"
    assert not list((tmp_path / "mine").iterdir())


def test_a_folder_that_is_deleted_meanwhile_hides_no_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with outputs.claim(tmp_path / "o", "render"):
            shutil.rmtree(tmp_path / "o")
            raise ZeroDivisionError
    with outputs.claim(tmp_path / "o", "render"):
        (tmp_path / "o" / "a").write_text("")


def test_files_of_others_are_refused_by_name(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"index\.html was not made by this command; move it"):
        with outputs.claim(tmp_path, "render", ["index.html", "best.png"]):
            pytest.fail("claimed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "notes.txt"]
    with outputs.claim(tmp_path, "render", ["best.png"]):
        (tmp_path / "best.png").write_text("ours")
    with outputs.claim(tmp_path, "render", ["best.png"]):
        pass  # now it is our own
    with pytest.raises(BadInput, match="holds what `reprise render` made; give another --out to"):
        with outputs.claim(tmp_path, "evaluate search"):
            pytest.fail("claimed")


def test_a_file_that_was_changed_since_is_not_replaced(tmp_path):
    page = tmp_path / "index.html"
    with outputs.claim(tmp_path, "render"):
        outputs.write_made(tmp_path, page, "one")
        outputs.write_made(tmp_path, page, "two")
        page.write_text("two, and my notes")
        with pytest.raises(BadInput, match="index.html was not made by this command, or was changed since"):
            outputs.write_made(tmp_path, page, "three")
    assert page.read_text() == "two, and my notes"


@pytest.mark.parametrize("at", ["before the note", "before the file", "after"])
def test_a_kill_while_a_file_is_written_leaves_it_replaceable(tmp_path, monkeypatch, at):
    page = tmp_path / "index.html"
    with outputs.claim(tmp_path, "render"):
        outputs.write_made(tmp_path, page, "one")
        calls = []

        def killed(path: Path, data):
            calls.append(path)
            if len(calls) == {"before the note": 1, "before the file": 2, "after": 3}[at]:
                raise KeyboardInterrupt
            write_whole(path, data)

        with monkeypatch.context() as patched:
            patched.setattr(outputs, "write_whole", killed)
            try:
                outputs.write_made(tmp_path, page, "two")
            except KeyboardInterrupt:
                assert at != "after"
        outputs.write_made(tmp_path, page, "three")
    assert page.read_text() == "three"


def test_what_is_set_aside_keeps_its_content_and_nothing_is_overwritten(tmp_path):
    for text in ("one", "two"):
        (tmp_path / "candidates").mkdir()
        (tmp_path / "candidates" / "a").write_text(text)
        (tmp_path / "record").write_text(text)
        aside = outputs.set_aside(tmp_path, ["candidates", "record", "missing"])
        assert aside is not None and (aside / "candidates" / "a").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replaced-1", "replaced-2"]
    assert outputs.set_aside(tmp_path, ["candidates", "record"]) is None


def test_after_a_kill_the_rest_is_set_aside_to_the_same_place(tmp_path):
    (tmp_path / "replaced-1").mkdir()
    (tmp_path / "replaced-1" / "candidates").mkdir()
    (tmp_path / "record").write_text("one")
    assert outputs.set_aside(tmp_path, ["candidates", "record"]) == tmp_path / "replaced-1"
    assert sorted(path.name for path in (tmp_path / "replaced-1").iterdir()) == ["candidates", "record"]


def test_a_probe_of_the_users_own_stays(tmp_path):
    (tmp_path / ".probe").write_text("mine")
    prepare_folder(tmp_path)
    assert (tmp_path / ".probe").read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 300, "x\0y"])
def test_a_name_that_the_file_system_does_not_take_is_one_line(tmp_path, name):
    with pytest.raises(BadInput, match="give another --out"):
        prepare_folder(tmp_path / name)


def test_a_file_may_have_as_long_a_name_as_the_file_system_takes(tmp_path):
    write_whole(tmp_path / ("x" * 255), "long")
    assert (tmp_path / ("x" * 255)).read_text() == "long"
