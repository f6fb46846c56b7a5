"""The command line without an installation: `python -m reprise`, or `python PATH/TO/the/pack`."""

import sys
from pathlib import Path


def _as_package() -> None:
    """Make this folder the package `reprise`, whatever it is called, as an installation would."""
    from importlib.util import module_from_spec, spec_from_file_location

    root = Path(__file__).resolve().parent
    spec = spec_from_file_location("reprise", root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None and spec.loader is not None
    package = module_from_spec(spec)
    sys.modules["reprise"] = package
    spec.loader.exec_module(package)


def _main() -> None:
    if not __package__:
        _as_package()
    from reprise.backend.cli.main import main

    main()


if __name__ == "__main__":
    _main()
