"""The HTTP server that the tests' fake services use."""

from __future__ import annotations

import sys
from http.server import ThreadingHTTPServer


class QuietServer(ThreadingHTTPServer):
    """An HTTP server that ignores clients closing their connection.

    The library's class writes a traceback to stderr, possibly later, into the output that a test checks.
    """

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)
