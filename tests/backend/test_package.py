"""What pyproject.toml promises about the package."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

tomllib = pytest.importorskip("tomllib")  # Python 3.11


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def names(requirements):
    return {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in requirements}


def test_every_package_is_listed(project):
    found = {"reprise"}
    for top in ("backend", "nodes"):
        for file in (ROOT / top).rglob("__init__.py"):
            found.add(".".join(("reprise", *file.parent.relative_to(ROOT).parts)))
    found = {name for name in found if not name.startswith("reprise.backend.lab")}  # the developers' alone
    assert set(project["tool"]["setuptools"]["packages"]) == found


def test_every_data_file_is_packed(project):
    packed = set()
    for package, patterns in project["tool"]["setuptools"]["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        packed |= {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    data = {
        path
        for path in (ROOT / "backend").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
    }
    assert data <= packed


def test_the_base_leaves_the_hosts_libraries_alone(project):
    host = {"torch", "torchvision", "torchaudio", "transformers", "numpy"}
    base = project["project"]["dependencies"]
    # These pull one of them in; the extras may.
    pullers = {
        "diffusers",
        "scipy",
        "matplotlib",
        "accelerate",
        "trl",
        "peft",
        "datasets",
        "pandas",
        "torchmetrics",
    }
    assert not names(base) & (host | pullers)
    for extra in project["project"]["optional-dependencies"].values():
        assert not [line for line in extra if names([line]) & host and re.search(r"[<>=~!]", line)], "no pins"


def test_what_the_manager_installs_is_the_base(project):
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == project["project"]["dependencies"]


def test_commits_are_looked_at_by_the_locked_ruff():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    lock = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
    assert re.search(r"rev: v(.+)", hooks)[1] == re.search(r"^ruff==(.+)$", lock, re.MULTILINE)[1]


def test_the_lock_asks_for_the_torch_that_was_tried():
    lock = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
    assert "\ntorch==2.13.0\n" in lock and "torchvision" not in lock
    assert not re.search(r"://|^-|/opt|\+cpu", lock, re.MULTILINE), "no hosts, options or machine paths"


def test_versions_agree(project):
    import reprise

    assert project["project"]["version"] == reprise.__version__
    assert project["tool"]["comfy"]["PublisherId"] == "reprise"


def test_files_are_short():
    for file in [*(ROOT / "backend").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]:
        assert file.read_text(encoding="utf-8").count("\n") < 500, file
