"""A local server with the Messages API's shape, to fill caches through the real SDK."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Optional, Type

from .payloads import text

__all__ = ["MessagesAPI"]


class _Handler(BaseHTTPRequestHandler):
    """Answers ``POST /<length>/v1/messages`` with a text of that many characters, drawn from the request."""

    protocol_version = "HTTP/1.1"
    # Without it the small second packet of an answer waits for the first one's acknowledgement.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        length = int(self.path.split("/")[1])
        body = json.dumps(
            {
                "id": "msg_local",
                "type": "message",
                "role": "assistant",
                "model": request["model"],
                "content": [{"type": "text", "text": text(request["messages"][0]["content"], length)}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 512, "output_tokens": length // 4},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("request-id", "req_local")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Say nothing."""


class MessagesAPI:
    """The server, in a thread, while the ``with`` block runs."""

    def __enter__(self) -> MessagesAPI:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="messages-api")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def base_url(self, length: int) -> str:
        """Return the base URL for the SDK at which answers have ``length`` characters."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{length}"
