"""The registries: every name resolves, and nothing is imported before."""

import subprocess
import sys

import pytest

from reprise.backend.core import registry
from reprise.backend.core.errors import UnknownName

TABLES = {
    "rewriter": registry.REWRITERS,
    "renderer": registry.RENDERERS,
    "reward": registry.REWARDS,
    "trainer": registry.TRAINERS,
}


@pytest.mark.parametrize("kind,name", [(kind, name) for kind, table in TABLES.items() for name in table])
def test_every_name_resolves(kind, name):
    assert callable(registry.resolve(kind, TABLES[kind], name))


@pytest.mark.parametrize("kind", TABLES)
def test_unknown_names_are_refused(kind):
    name = next(iter(TABLES[kind]))
    with pytest.raises(UnknownName, match=f"unknown {kind} '{name}x'; did you mean '{name}'"):
        registry.resolve(kind, TABLES[kind], name + "x")


def test_importing_the_registry_loads_no_library():
    code = (
        "import sys, reprise.backend.core.registry; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
