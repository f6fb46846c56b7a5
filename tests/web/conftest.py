"""The ComfyUI of tests/nodes for the tests of the pages, which run no second one."""

from ..nodes.conftest import server  # noqa: F401  a fixture for all
