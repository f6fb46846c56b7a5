"""Settings for all tests.

One thread for small models, set before torch is imported: more threads cost more than they gain. Ctrl-C is
enabled, because shells start background processes, and so the tests' own, with it ignored.
"""

import os
import signal

from .fake_endpoint import endpoint  # noqa: F401  a fixture for all

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
signal.signal(signal.SIGINT, signal.default_int_handler)
