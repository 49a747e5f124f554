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
from typing import IO, Any, Dict, List, Mapping, Optional, Type

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
    :param rpm: requests per minute that it lets through, or None for any number; see :meth:`configure`.
    :param python: an interpreter that has llmock; by default ``CLAUDE_FORCE_LLMOCK_PYTHON``, else this one.
    :raises StandInError: on entering, if llmock is missing or the server does not come up.
    """

    def __init__(self, *, latency_ms: int = 0, rpm: Optional[int] = None, python: Optional[str] = None) -> None:
        self._settings = {"latency_ms": latency_ms, "rpm": rpm}
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
                [self._python, str(_SERVER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            try:
                self._port = self._announced(self._settings, errors)
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

    def configure(
        self,
        *,
        latency_ms: int = 0,
        rpm: Optional[int] = None,
        tpm: Optional[int] = None,
        context_window: Optional[int] = None,
        error_rates: Optional[Mapping[int, float]] = None,
    ) -> None:
        """Change what the server does from now on; what is not given is as without it. Quotas are full again.

        :param rpm: requests per minute: so many at once, refilled continuously.
        :param tpm: tokens per minute, likewise; a request takes its length by four and its ``max_tokens``.
        :param context_window: the longest prompt in tokens.
        :param error_rates: by status, the share of requests that fail with it.
        :raises StandInError: if the server does not take it.
        """
        self._announced(
            {
                "latency_ms": latency_ms,
                "rpm": rpm,
                "tpm": tpm,
                "context_window": context_window,
                "error_rates": {str(status): rate for status, rate in (error_rates or {}).items()},
            },
            None,
        )

    def script(self, *behaviors: Mapping[str, Any]) -> None:
        """Add to what the server does with the next requests, in the words of llmock's scenarios.

        :raises StandInError: if the server does not take it.
        """
        self._ask("POST", "scenario", json.dumps({"behaviors": behaviors}).encode())

    def reset(self) -> None:
        """Make the server forget requests and scenarios, and fill the quotas again.

        :raises StandInError: if it does not answer.
        """
        self._ask("POST", "reset")

    def forget(self) -> None:
        """Make the server forget the requests it has counted so far.

        :raises StandInError: if it does not answer.
        """
        self._ask("DELETE", "requests")

    def journal(self) -> List[Dict[str, Any]]:
        """Return the calls of the Messages API that have reached the server since it last forgot, oldest first.

        :raises StandInError: if it does not answer.
        """
        entries: List[Dict[str, Any]] = json.loads(self._ask("GET", "requests"))["requests"]
        return [entry for entry in entries if entry["method"] == "POST" and entry["path"] == "/anthropic/v1/messages"]

    def requests(self) -> int:
        """Return how many calls :meth:`journal` has.

        :raises StandInError: if the server does not answer.
        """
        return len(self.journal())

    def verdict(self) -> str:
        """Return the server's opinion of how its client took what happened. A clean one holds the word ``PASS``.

        :raises StandInError: if it does not answer.
        """
        return self._ask("GET", "verdict?format=text").decode("utf-8")

    def _announced(self, settings: Mapping[str, Any], errors: Optional[IO[bytes]]) -> int:
        """Return the port, once the settings are in force."""
        process = self._process
        if process is None or process.stdout is None or process.stdin is None:
            raise StandInError("the local stand-in is not running")
        limit = threading.Timer(_START_SECONDS, process.kill)
        limit.start()
        try:
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it is gone
            line = b""
        finally:
            limit.cancel()
        if line:
            return int(json.loads(line)["port"])
        process.wait()
        if errors is None:
            raise StandInError("the local stand-in for Claude does not take the settings, and ended: check them")
        errors.seek(0)
        lines = errors.read().decode("utf-8", "replace").strip().splitlines()
        raise StandInError(
            f"the local stand-in for Claude did not start ({lines[-1] if lines else 'no message'}): "
            "pip install --force-reinstall llmock"
        )

    def _ask(self, method: str, what: str, body: Optional[bytes] = None) -> bytes:
        # Straight to the port: a proxy from the environment has no business on the loopback interface.
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request(method, f"/_llmock/{what}", body)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise StandInError(f"the local stand-in for Claude stopped answering ({error}): try again") from error
        finally:
            connection.close()
        if response.status not in {200, 201}:
            raise StandInError(
                f"the local stand-in for Claude answered {response.status} to {method}: "
                "pip install --upgrade 'claude-force-cache[demo]'"
            )
        return answer

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            try:
                process.stdin.close()
            except OSError:
                pass  # what was written last has no reader any more
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
