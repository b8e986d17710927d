"""The viewer over HTTP: only on this machine, read-only, for those who have the address with its token."""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from dino_path.errors import ConfigError, DinoPathError
from dino_path.viewing.viewer import JSON, Answer

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
OWN_NAMES = {HOST, "localhost"}  # what a browser on this machine, or behind an SSH tunnel, calls us
IDLE_S = 60.0
HEADERS = {
    "Cache-Control": "no-store",  # pixels of patients stay out of the browser's cache on disk
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ViewerServer(ThreadingHTTPServer):
    """Serves the results of `answer`, below a random token.

    Attributes:
        address: what a browser opens.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[str], Answer | None], port: int = 0) -> None:
        """Take a port of 127.0.0.1; 0: any that is free.

        Raises:
            ConfigError: the port is taken, or may not be taken.
        """
        self.answer, self.token = answer, secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"--port {port}",
                f"is not available ({error.strerror or error}).",
                "A free port of this machine is needed.",
                "Give another, or leave --port out to get any free port.",
            ) from None
        self.address = f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log unexpected errors; a browser may close the connection at any time."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            logger.exception("a request failed")


class _Handler(BaseHTTPRequestHandler):
    server: ViewerServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dino-path", ""
    timeout: ClassVar[float] = IDLE_S

    def do_GET(self) -> None:
        """Answer, or refuse in words that the page shows."""
        if self.headers.get("Host", "").rpartition(":")[0] not in OWN_NAMES:  # a name that was rebound to 127.0.0.1
            self._refuse(HTTPStatus.FORBIDDEN, "this address belongs to another host")
            return
        token, _, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "the token in the address is missing or wrong")
            return
        try:
            answer = self.server.answer(path)
        except DinoPathError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
            return
        if answer is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")
            return
        self._send(HTTPStatus.OK, *answer)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(status, json.dumps({"error": why}).encode(), JSON)

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        """To the debug log, without the token."""
        logger.debug("%s", (format % values).replace(self.server.token, "..."))
