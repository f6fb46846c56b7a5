"""Where judges' files are looked for, what is said where they are not, and downloads from a stand-in hub."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler

import pytest

from reprise.backend.core.errors import CheckpointError, UnknownName
from reprise.backend.core.registry import REWARDS, resolve
from reprise.backend.rewards.published import download as fetch
from reprise.backend.rewards.published import files
from reprise.backend.rewards.published.files import JUDGES, PublishedFile

from ....servers import QuietServer


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """No model anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REPRISE_MODELS", raising=False)
    cache = tmp_path / "hub"
    # The constant, not the variable: the library reads that once.
    from huggingface_hub import constants, file_download

    for module in (constants, file_download):
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache))
    return tmp_path


@pytest.mark.parametrize("name", JUDGES)
def test_without_its_files_a_judge_says_what_to_get_and_where_to_put_it(name, nothing):
    with pytest.raises(CheckpointError) as error:
        resolve("reward", REWARDS, name)()
    text = str(error.value)
    assert text.startswith(f"{name} is not installed: put ") and "\n" not in text
    for wanted in JUDGES[name].files:
        assert f"{wanted.name} (" in text and wanted.page in text
        assert os.path.join("models", "reprise", "judges", wanted.folder) in text


def test_every_judge_with_files_is_a_reward_of_that_name():
    for name in JUDGES:
        assert resolve("reward", REWARDS, name).spec.name == name
    with pytest.raises(UnknownName, match="did you mean 'pick-score'"):
        files.needs("pickscore")


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_the_order_of_folders(nothing, monkeypatch):
    wanted = JUDGES["image-reward"].files[0]
    assert files.find(wanted) is None
    hub = nothing / "hub" / "models--zai-org--ImageReward"
    touch(hub / "refs" / "main").write_text("abc")
    cached = touch(hub / "snapshots" / "abc" / "ImageReward.pt")
    assert files.find(wanted) == cached
    here = touch(nothing / "models" / "reprise" / "judges" / "image-reward" / "ImageReward.pt")
    assert files.find(wanted).samefile(here)
    monkeypatch.setenv("REPRISE_MODELS", str(nothing / "mine"))
    mine = touch(nothing / "mine" / "judges" / "image-reward" / "ImageReward.pt")
    assert files.find(wanted) == mine
    given = touch(nothing / "given" / "ImageReward.pt")
    assert files.find(wanted, [given.parent]) == given


def test_a_path_is_the_weights_or_their_folder(nothing):
    other = touch(nothing / "x" / "mine" / "other.pt")
    with pytest.raises(CheckpointError, match="put vocab.txt"):
        files.locate("image-reward", other)
    vocabulary = touch(other.parent / "vocab.txt")
    assert files.locate("image-reward", other) == [other, vocabulary]
    weights = touch(other.parent / "ImageReward.pt")
    assert files.locate("image-reward", other.parent) == [weights, vocabulary]
    with pytest.raises(CheckpointError, match="there is no .*nowhere; give image-reward's ImageReward.pt"):
        files.locate("image-reward", nothing / "nowhere")
    # What several judges share lies beside.
    head = touch(nothing / "y" / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth")
    beside = nothing / "y" / "clip-vit-large-patch14"
    clip = [touch(beside / name) for name in ("pytorch_model.bin", "config.json")]
    assert files.locate("aesthetic", head.parent) == [head, *clip]
    # Two models that name their files alike: the folder is the first one's.
    names = ("model.safetensors", "config.json", "preprocessor_config.json")
    detector = [touch(nothing / "y" / "detector" / name) for name in names]
    assert files.locate("geneval", detector[0].parent) == files.locate("geneval", detector[0])
    assert files.locate("geneval", detector[0]) == [*detector, *clip]


def test_sizes():
    assert [files.size(n) for n in (4519, 231_508, 3_714_000, 1_972_000_000)] == [
        "5 kB",
        "232 kB",
        "3.7 MB",
        "1.97 GB",
    ]


def test_the_modules_import_no_heavy_library():
    code = (
        "import sys, reprise.backend.rewards.published.files as f\n"
        "from reprise.backend.core.registry import REWARDS, resolve\n"
        "[resolve('reward', REWARDS, n) for n in f.JUDGES]\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Hub(BaseHTTPRequestHandler):
    """The hub's two calls for a file: HEAD for what it is, GET for its bytes."""

    content, etag, size = b"weights" * 1000, "a" * 40, 7000

    def do_HEAD(self, body=b""):
        if self.path.rpartition("/")[2] not in ("weights.bin", "small.json"):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{self.etag}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("X-Linked-Size", str(self.size))
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.do_HEAD(self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(nothing, monkeypatch):
    server = QuietServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("REPRISE_MODELS", str(nothing / "mine"))
    yield nothing / "mine" / "judges"
    server.shutdown()


def wants(monkeypatch, *wanted):
    monkeypatch.setitem(JUDGES, "tiny", files.JudgeFiles(tuple(wanted), 1))


def test_a_download_that_was_asked_for(hub, monkeypatch):
    wants(
        monkeypatch,
        PublishedFile("tiny", "weights.bin", 7000, "a/b"),
        PublishedFile("tiny", "small.json", 7000, "a/b"),
    )
    lines = []
    paths = fetch.fetch("tiny", lines.append)
    assert paths == [hub / "tiny" / "weights.bin", hub / "tiny" / "small.json"]
    assert paths[0].read_bytes() == Hub.content
    assert len(lines) == 2 and "weights.bin (7 kB) from" in lines[0]
    assert fetch.fetch("tiny", lines.append) == [] and len(lines) == 2  # nothing is fetched twice
    paths[1].unlink()
    assert fetch.fetch("tiny", lines.append) == paths[1:]


def test_a_download_of_another_size_than_promised_is_refused(hub, monkeypatch):
    wants(monkeypatch, PublishedFile("tiny", "weights.bin", 7000, "a/b"))
    monkeypatch.setattr(Hub, "size", 8000)
    with pytest.raises(CheckpointError, match="weights.bin cannot be had from .*size") as error:
        fetch.fetch("tiny", print)
    assert "\n" not in str(error.value) and not (hub / "tiny" / "weights.bin").exists()


def test_a_failed_download_is_one_line(hub, monkeypatch):
    wants(monkeypatch, PublishedFile("tiny", "gone.bin", 7000, "a/b"))
    with pytest.raises(CheckpointError, match="gone.bin cannot be had from https://hugg.*/a/b: ") as error:
        fetch.fetch("tiny", print)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="Hugging Face has no sac.*github.com.* then ask again"):
        fetch.fetch("aesthetic", print)


def test_golden_files_are_small():
    from ..conftest import DATA

    assert sum(path.stat().st_size for path in DATA.iterdir() if path.is_file()) < 2 * 2**20
    assert json.loads((DATA / "golden.json").read_text(encoding="utf-8")).keys() >= {"hps", "image_reward"}
