"""What SECURITY.md promises, as far as no other test holds it, and what ComfyUI's registry asks of a pack."""

import ast
import functools
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from reprise.backend.core.errors import BadInput
from reprise.backend.preferences.mining import _image_file
from reprise.backend.preferences.store import PairPicture
from reprise.backend.preferences.table import read_table
from reprise.backend.reports.pictures import inline_picture
from reprise.backend.storage.cache import Cache
from reprise.backend.training.rollouts.picture_log import read_log

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = [
    path
    for path in (
        ROOT / "__init__.py",
        ROOT / "__main__.py",
        *(ROOT / "backend").rglob("*.py"),
        *(ROOT / "nodes").rglob("*.py"),
    )
    if "lab" not in path.relative_to(ROOT).parts[:2]
]
PROMISE = re.compile(r"`(tests/[\w/.]+)::(\w+)`")


@functools.cache
def nodes(path):
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def calls(path):
    """(its name as written, the call) of every call in a file."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_code_runs_from_data():
    """No eval or exec, nothing unpickled, no archive unpacked, no shell, YAML without tags of Python."""
    forbidden = re.compile(
        r"(builtins\.)?(eval|exec|compile|__import__)$|(pickle|cPickle|dill|joblib|marshal|shelve|cloudpickle)\."
        r"|os\.(system|popen|exec\w+|spawn\w+)$|yaml\.(load|unsafe_load|full_load|load_all)$|tempfile\.mktemp$"
        r"|.*\.(extractall|unpack_archive)$|(np|numpy)\.load$"
    )
    for path in SHIPPED:
        for name, call in calls(path):
            where = f"{path.relative_to(ROOT)}:{call.lineno}: {name}"
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert not forbidden.match(name), where
            assert given.get("shell", "False") == "False", where
            assert given.get("trust_remote_code", "False") == "False", where
            assert given.get("allow_pickle", "False") == "False", where
            if name == "torch.load":
                assert given.get("weights_only") == "True", where


def test_nothing_is_installed_while_it_runs_and_nothing_is_obfuscated():
    """The registry's standards: https://docs.comfy.org/registry/standards."""
    for path in SHIPPED:
        text = path.read_text(encoding="utf-8")
        assert max(map(len, text.splitlines()), default=0) <= 200, path
        for name, call in calls(path):
            if not name.startswith("subprocess."):
                continue
            words = [
                one.value
                for one in ast.walk(call)
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            ]
            assert not {"pip", "uv", "install"} & set(words), f"{path}:{call.lineno}"
        for node in nodes(path):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert node.name.isascii() and len(node.name) < 60, f"{path}: {node.name}"
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web").rglob("*.js"))
    assert not re.search(
        r"\beval\(|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write", scripts
    )


def test_the_scan_of_comfyuis_command_line_finds_nothing():
    """`comfy node validate` runs ruff with these three rules."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "S102,S307,E702", "--quiet"]
    done = subprocess.run([*command, *map(str, SHIPPED)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_promise_names_a_test_that_there_is():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = PROMISE.findall(text)
    assert len(named) >= 12
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.M), (
            f"{file}::{test}"
        )


@pytest.fixture
def outside(tmp_path):
    """A picture of the user's own, not in the folder "run", where a stranger's files are."""
    (tmp_path / "run").mkdir()
    path = tmp_path / "private.png"
    Image.new("RGBA", (8, 8)).save(path)
    return path


def test_a_cache_reads_and_deletes_nothing_outside(outside):
    """A picture that is not as the cache writes it counts as damaged, and is deleted: not the user's own."""
    cache = Cache(outside.parent / "run" / "pictures")
    (outside.parent / "run" / "pictures" / "..").mkdir(parents=True, exist_ok=True)
    for key in ("../../private", "../" * 3 + "private", str(outside.with_suffix("")), ".."):
        with pytest.raises(BadInput, match="cannot be a picture's name"):
            cache.get_image(key)
        with pytest.raises(BadInput, match="cannot be a picture's name"):
            cache.forget(key)
    assert outside.is_file()


def test_a_preference_names_no_file_outside_its_store():
    for name in ("../../private", "/etc/passwd", "", "a" * 63, "A" * 64):
        with pytest.raises(ValidationError):
            PairPicture(image=name, drawn_as="a cube", score=1.0)


def test_a_page_shows_no_picture_outside_its_folder(outside):
    run = outside.parent / "run"
    os.symlink(outside, run / "link.png")
    Image.new("RGB", (8, 8)).save(run / "own.png")
    assert inline_picture(run, "own.png", 8)
    for name in ("../private.png", str(outside), "link.png", "own.png\0", ""):
        assert inline_picture(run, name, 8) is None
        assert _image_file(run, name) is None


def test_a_table_names_no_picture_outside_its_folder(outside):
    table = outside.parent / "run" / "t.csv"
    for name in ("../private.png", str(outside)):
        table.write_text(f"image,prompt,score\n{name},a cube,1\n")
        with pytest.raises(BadInput, match="line 2: .* is not in the table's folder"):
            list(read_table(table, "taste"))


def test_a_part_of_diffusiondb_names_no_picture_outside_its_folder(outside):
    part = outside.parent / "run" / "part-000001.json"
    part.write_text(json.dumps({"../private.png": {"p": "a cube"}}))
    with pytest.raises(BadInput, match="no part of DiffusionDB"):
        read_log(outside.parent / "run")


def test_a_servers_file_name_is_a_question_to_the_server_alone(tmp_path, monkeypatch):
    """ComfyUI says which file holds a picture: it is asked for by this name, and nothing is written."""
    import asyncio

    from reprise.backend.renderers.comfyui.client import ComfyUIClient

    monkeypatch.chdir(tmp_path)
    asked = []

    async def fetch():
        client = ComfyUIClient("http://127.0.0.1:1", "us", 60)

        class Answer:
            status, body = 200, b"a picture"

        async def send(*given, **options):
            asked.append((given, options))
            return Answer

        client._send = send
        data = await client.fetch_file({"filename": "../../x.png", "subfolder": "/etc", "type": "output"})
        await client.close()
        return data

    assert asyncio.run(fetch()) == b"a picture" and not list(tmp_path.iterdir())
    assert asked == [
        (("GET", "view"), {"params": {"filename": "../../x.png", "subfolder": "/etc", "type": "output"}})
    ]


def test_pickled_weights_that_would_run_code_are_refused(tmp_path):
    import pickle

    from reprise.backend.core.errors import CheckpointError
    from reprise.backend.rewards.published.checkpoint import read_weights

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    import torch

    file = io.BytesIO()
    torch.save({"weight": Harm()}, file)
    for data in (file.getvalue(), pickle.dumps(Harm())):
        (tmp_path / "weights.pt").write_bytes(data)
        with pytest.raises(CheckpointError):
            read_weights(tmp_path / "weights.pt")
    assert not (tmp_path / "harmed").exists()
