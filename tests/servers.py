"""The HTTP server of the tests' own fake services."""

from __future__ import annotations

import sys
from http.server import ThreadingHTTPServer


class QuietServer(ThreadingHTTPServer):
    """Says nothing when a client hangs up, as they do whenever they have read what they wanted.

    The library's writes a traceback to the error stream, at any time later: into whatever a test looks at.
    """

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)
