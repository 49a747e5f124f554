"""The local stand-in for Claude: llmock in a process of its own, asked for its own account of requests."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Optional, Type

__all__ = ["StandIn", "StandInError"]

_SERVER = Path(__file__).with_name("_standin_server.py")
_START_SECONDS = 60.0
_STOP_SECONDS = 5.0


class StandInError(RuntimeError):
    """Raised when the local stand-in cannot be started or does not answer; the message is one line."""


class StandIn:
    """A local Messages API that runs while the ``with`` block does.

    The server process binds its port itself and tells it over a pipe, so the port cannot be somebody
    else's; it ends when the block does, or when this process is gone.

    :param latency_ms: milliseconds that every answer takes.
    :param python: an interpreter that has llmock; by default ``CLAUDE_FORCE_LLMOCK_PYTHON``, else this one.
    :raises StandInError: on entering, if llmock is missing or the server does not come up.
    """

    def __init__(self, *, latency_ms: int = 0, python: Optional[str] = None) -> None:
        self._latency_ms = latency_ms
        self._python = python or os.environ.get("CLAUDE_FORCE_LLMOCK_PYTHON") or sys.executable
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._port = 0

    @property
    def base_url(self) -> str:
        """The base URL for Anthropic's SDK."""
        return f"http://127.0.0.1:{self._port}/anthropic"

    @property
    def pid(self) -> int:
        """The id of the server's process."""
        if self._process is None:
            raise StandInError("the local stand-in is not running")
        return self._process.pid

    def __enter__(self) -> StandIn:
        if self._python == sys.executable and importlib.util.find_spec("llmock") is None:
            raise StandInError(
                "the local stand-in for Claude needs llmock, which is not installed: "
                + (
                    "pip install 'claude-force-cache[demo]'"
                    if sys.version_info >= (3, 10)
                    else "use Python 3.10 or newer, or name one that has it in CLAUDE_FORCE_LLMOCK_PYTHON"
                )
            )
        with tempfile.TemporaryFile() as errors:
            # A session of its own: Ctrl-C in the terminal is for this process, which then ends the server.
            self._process = subprocess.Popen(  # noqa: S603 - an interpreter and a file of this package
                [self._python, str(_SERVER), "--latency-ms", str(self._latency_ms)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            try:
                self._port = self._announced(errors)
            except BaseException:
                self._stop()
                raise
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._stop()

    def forget(self) -> None:
        """Make the server forget the requests it has counted so far.

        :raises StandInError: if it does not answer.
        """
        self._ask("DELETE")

    def requests(self) -> int:
        """Return how many calls of the Messages API have reached the server since it last forgot.

        :raises StandInError: if it does not answer.
        """
        journal = json.loads(self._ask("GET"))["requests"]
        return sum(entry["method"] == "POST" and entry["path"] == "/anthropic/v1/messages" for entry in journal)

    def _announced(self, errors: IO[bytes]) -> int:
        process = self._process
        if process is None or process.stdout is None:
            raise StandInError("the local stand-in is not running")
        limit = threading.Timer(_START_SECONDS, process.kill)
        limit.start()
        try:
            line = process.stdout.readline()
        finally:
            limit.cancel()
        if not line:
            process.wait()
            errors.seek(0)
            lines = errors.read().decode("utf-8", "replace").strip().splitlines()
            raise StandInError(
                f"the local stand-in for Claude did not start ({lines[-1] if lines else 'no message'}): "
                "pip install --force-reinstall llmock"
            )
        return int(json.loads(line)["port"])

    def _ask(self, method: str) -> bytes:
        # Straight to the port: a proxy from the environment has no business on the loopback interface.
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request(method, "/_llmock/requests")
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise StandInError(f"the local stand-in for Claude stopped answering ({error}): try again") from error
        finally:
            connection.close()
        if response.status != 200:
            raise StandInError(
                f"the local stand-in for Claude answered {response.status} to {method}: "
                "pip install --upgrade 'claude-force-cache[demo]'"
            )
        return body

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
