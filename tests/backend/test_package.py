"""What pyproject.toml promises about the package, and what is in the wheel, the sdist and the pack."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("backend/", "nodes/", "web/", "workflows/", "locales/")
NOT_SHIPPED = ("backend/lab/", "tests/", ".github/", ".ci/")


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


def test_the_base_runs_where_comfyui_runs_and_the_extras_need_what_is_said(project):
    """By what the releases say that are installed here, the newest that were tried."""
    from reprise.backend.cli.main import EXTRAS_NEED

    said = ".".join(map(str, EXTRAS_NEED))
    assert project["project"]["requires-python"] == ">=3.10"
    assert project["tool"]["ruff"]["target-version"] == "py310"
    assert project["tool"]["pyright"]["pythonVersion"] == "3.10"
    extras = project["project"]["optional-dependencies"]
    (diffusers,) = (Requirement(line) for line in extras["render"] if line.startswith("diffusers"))
    assert metadata("diffusers")["Version"] in diffusers.specifier and "0.41.0" not in diffusers.specifier
    assert "3.10" not in SpecifierSet(metadata("diffusers")["Requires-Python"])
    for extra in ("train", "serve"):
        assert "reprise-nodes[render]" in extras[extra]
    for extra in ("render", "train", "serve"):
        for name in names(extras[extra]) - {"reprise-nodes"}:
            assert said in SpecifierSet(metadata(name)["Requires-Python"]), name


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


def tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def shipped():
    """What an installation needs of the repository's files."""
    return {
        name
        for name in tracked()
        if name in ("__init__.py", "__main__.py", "py.typed")
        or (name.startswith(SHIPPED) and not name.startswith(NOT_SHIPPED))
    }


def copy(files, to):
    """The repository's files, weights as empty ones: names are what counts here."""
    for name in files:
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            path.touch()
        else:
            shutil.copy2(ROOT / name, path)


def python(folder, *words, **settings):
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, env={**os.environ, **settings}
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the wheel's files, and the names of the sdist's."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    copy(tracked(), source)
    code = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    done = python(source, "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,), (sdist,) = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    zipfile.ZipFile(wheel).extractall(out)
    return out, {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}


def test_the_wheel_and_the_sdist_hold_what_is_shipped_and_no_more(built):
    wheel, sdist = built
    inside = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    assert {name.removeprefix("reprise/") for name in inside if ".dist-info/" not in name} == shipped()
    assert shipped() <= sdist and not [name for name in sdist if name.startswith(NOT_SHIPPED)]


def test_the_wheels_command_line_has_no_lab(built, tmp_path):
    wheel, _ = built
    code = "import reprise; print(reprise.__file__)"
    assert python(tmp_path, "-c", code, PYTHONPATH=str(wheel)).stdout.startswith(str(wheel))
    found = python(tmp_path, "-m", "reprise", "--help", PYTHONPATH=str(wheel))
    assert found.returncode == 0 and " render " in found.stdout and " lab " not in found.stdout, found.stderr
    assert python(tmp_path, "-m", "reprise", "lab", PYTHONPATH=str(wheel)).returncode == 2
    assert " lab " in python(tmp_path, str(ROOT), "--help").stdout


def test_the_registrys_archive_runs_without_what_it_leaves_out(tmp_path):
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    files = tracked() - set(done.stdout.splitlines())
    assert shipped() <= files and not [name for name in files if name.startswith(NOT_SHIPPED)]
    copy(files, tmp_path / "pack")
    found = python(tmp_path, "pack", "--help")
    assert found.returncode == 0 and " render " in found.stdout and " lab " not in found.stdout, found.stderr
