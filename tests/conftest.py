"""One thread for small models, set before torch is imported: spinning threads cost more than they bring."""

import os

from .fake_endpoint import endpoint  # noqa: F401  a fixture for all

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
