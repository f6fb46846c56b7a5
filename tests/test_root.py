"""The repository's root: a pack that is cheap to import, and a program that runs by its path."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {
    "torch",
    "numpy",
    "scipy",
    "PIL",
    "transformers",
    "diffusers",
    "pydantic",
    "typer",
    "rich",
    "jinja2",
    "yaml",
    "comfy",
    "comfy_api",
    "asyncio",
}


def loaded_by(code: str, cwd) -> set[str]:
    after = "print(json.dumps(sorted(set(sys.modules) - before)))"
    program = f"import sys, json; before = set(sys.modules)\n{code}\n{after}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd, check=True
    )
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_else(tmp_path):
    loaded = loaded_by(
        "import reprise; assert reprise.__version__ and reprise.WEB_DIRECTORY == './web'", tmp_path
    )
    assert {name for name in loaded if not name.startswith("__editable__")} <= {"reprise"}


def test_a_host_that_imports_the_pack_by_path_loads_nothing_heavy(tmp_path):
    # As ComfyUI does it: the module's name is its path.
    code = f"""
import importlib.util
root = {str(ROOT)!r}
spec = importlib.util.spec_from_file_location(root.replace(".", "_x_"), root + "/__init__.py",
                                              submodule_search_locations=[root])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
assert callable(module.comfy_entrypoint) and not hasattr(module, "NODE_CLASS_MAPPINGS")
"""
    assert not {name.split(".")[0] for name in loaded_by(code, tmp_path)} & HEAVY


def test_no_help_and_no_list_of_models_loads_a_model_library(tmp_path):
    code = """
import contextlib, io, typer
from reprise.backend.cli.main import app, run

def commands(command, words=()):
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))

found = list(commands(typer.main.get_command(app)))
assert len(found) > 40 and ("train", "grpo") in found and ("lab", "bench", "parm") in found, found
with contextlib.redirect_stdout(io.StringIO()):
    for words in found:
        assert run([*words, "--help"]) == 0, words
    assert run(["models"]) == run(["models", "--json"]) == 0
"""
    loaded = {name.split(".")[0] for name in loaded_by(code, tmp_path)}
    assert not loaded & {"torch", "numpy", "scipy", "PIL", "transformers", "diffusers", "trl", "jinja2"}


def test_runs_by_path_from_anywhere(tmp_path):
    for start in ([str(ROOT)], ["-m", "reprise"]):
        done = subprocess.run(
            [sys.executable, *start, "--version"], capture_output=True, text=True, cwd=tmp_path
        )
        assert (done.returncode, done.stdout.split()[0]) == (0, "reprise"), done.stderr


def test_runs_by_path_without_an_installation(tmp_path):
    # A pack under another name, with an interpreter that has no `reprise` of its own.
    pack = tmp_path / "some-pack"
    pack.symlink_to(ROOT)
    hide = tmp_path / "hide.py"
    hide.write_text(
        "import sys, runpy\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        f"sys.argv = ['x', '--version']\nrunpy.run_path({str(pack)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, str(hide)], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout.split()[:1]) == (0, ["reprise"]), done.stderr
