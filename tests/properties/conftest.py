"""How many examples hypothesis tries: few and always the same ones in `make test`; many and new ones where
HYPOTHESIS_PROFILE=thorough is set, as `make properties` does.
"""

import os
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, settings

# No parser takes seconds for a small input. The first example of a test may import a library.
LIMITS = {
    "deadline": timedelta(seconds=10),
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    "database": None,
}
# No search for a smaller example: it takes minutes.
QUICK = {"phases": [Phase.explicit, Phase.generate], "derandomize": True}
settings.register_profile("quick", max_examples=30, **QUICK, **LIMITS)
settings.register_profile("thorough", max_examples=2_000, print_blob=True, **LIMITS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """A folder for the files of all examples; each writes its own over the last one's."""
    return tmp_path_factory.mktemp("properties")
