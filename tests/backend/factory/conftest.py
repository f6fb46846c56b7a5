"""The command line, stopped where it would make what a name says; and one of each kind of thing to name."""

import json
from importlib import import_module
from types import SimpleNamespace

import pytest

from ...fake_comfyui import GRAPH
from ..cli.conftest import reprise  # noqa: F401  a fixture
from ..rewards.vlm import tiny_vlm
from ..rewriters.prip.tiny_prip import save as save_refiner

AWAY = "http://127.0.0.1:9"  # nobody listens there


class Reached(BaseException):
    """Something was about to be made: the registry's line that makes it, and what it was given."""

    def __init__(self, kind, given):
        super().__init__(kind, given)
        self.kind, self.given = kind, given


@pytest.fixture
def stop_at(monkeypatch):
    """`stop_at("rewards", spared)`: where the factory would make a reward it raises Reached, but for the
    `spared` lines of the registry."""

    def stop(role, spared=()):
        module = import_module(f"reprise.backend.factory.{role}")
        real = module.resolve

        def resolve(kind, table, name):
            made = real(kind, table, name)
            if name in spared:
                return made

            class Stops:
                capabilities = getattr(made, "capabilities", None)  # functions of the registry have none

                def __new__(cls, *given, **options):
                    raise Reached(name, given)

            return Stops

        monkeypatch.setattr(module, "resolve", resolve)

    return stop


@pytest.fixture(scope="session")
def things(tmp_path_factory):
    """Folders and files that names may name."""
    root = tmp_path_factory.mktemp("things")
    (root / "flow.json").write_text(json.dumps(GRAPH))
    (root / "pipeline").mkdir()
    (root / "lm").mkdir()
    (root / "lm" / "config.json").write_text('{"model_type": "qwen2"}')
    (root / "lora.safetensors").write_bytes(b"")
    save_refiner(root / "refiner")
    tiny_vlm.llava(root / "vlm")
    return SimpleNamespace(
        flow=root / "flow.json",
        pipeline=root / "pipeline",
        lm=root / "lm",
        refiner=root / "refiner",
        vlm=root / "vlm",
        lora=root / "lora.safetensors",
    )


@pytest.fixture
def check(reprise, tmp_path):  # noqa: F811  the fixture
    """`check(words, expected)`: one command line comes to the point where (kind, given) is made, or, where
    `expected` is a text, refuses with it in one line and leaves nothing behind."""

    def run(words, expected):
        before = sorted(tmp_path.rglob("*"))
        try:
            done = reprise(*words)
        except Reached as reached:
            assert (reached.kind, tuple(map(str, reached.given))) == expected
            return
        assert isinstance(expected, str), done.err
        assert done.code == 2 and not done.out, done
        (line,) = done.err.strip().splitlines()
        assert expected in line, line
        assert sorted(tmp_path.rglob("*")) == before

    return run
