"""What the tests of the orchestrator share: a project, and two real Messages APIs on loopback.

``stand_in`` is llmock, which speaks the protocol by itself and keeps a journal; it runs as a process of an
interpreter that has it. ``api`` is a small server that says what a test tells it to, for the replies that
llmock cannot give. Both are reached through the real SDK.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Awaitable, Callable, Deque, Dict, Iterator, List, Mapping, Optional

import pytest

from claude_force_orchestrator import AsyncAgentOrchestrator
from claude_force_orchestrator.demo._standin import StandIn

KEY = "sk-ant-test-0123456789"
REVIEWER = "# Code reviewer\n\nYou review code. Answer in English.\n"
CONTRACT = "Name every defect with its line.\n"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the user's own settings out of the tests."""
    for name in list(os.environ):
        if name.startswith(("ANTHROPIC_", "CLAUDE_")) or name.lower() in {"http_proxy", "https_proxy", "all_proxy"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("CLAUDE_CACHE_SECRET", "a secret of the tests, long enough")
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The path of a claude.json in the format that users of the old system have."""
    folder = tmp_path / "project" / ".claude"
    (folder / "agents").mkdir(parents=True)
    (folder / "contracts").mkdir()
    (folder / "agents" / "reviewer.md").write_text(REVIEWER, encoding="utf-8")
    (folder / "agents" / "writer.md").write_text("You write documentation.\n", encoding="utf-8")
    (folder / "contracts" / "writer.contract").write_text(CONTRACT, encoding="utf-8")
    path = folder / "claude.json"
    path.write_text(
        json.dumps(
            {
                "version": "1.0.0",
                "name": "tests",
                "agents": {
                    "code-reviewer": {"file": "agents/reviewer.md", "domains": ["code"], "priority": 1},
                    "doc_writer": {"file": "agents/writer.md", "contract": "contracts/writer.contract"},
                },
                "workflows": {"both": ["code-reviewer", "doc_writer"]},
                "governance": {"enabled": True},
            }
        ),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def edit(config: Path) -> Callable[..., None]:
    """Change top-level keys of claude.json: ``edit(cache={...})``."""

    def change(**keys: Any) -> None:
        table = json.loads(config.read_text(encoding="utf-8"))
        table.update(keys)
        config.write_text(json.dumps(table), encoding="utf-8")

    return change


@pytest.fixture
def make(config: Path, api: ScriptedAPI) -> Callable[..., AsyncAgentOrchestrator]:
    """Make an orchestrator on the scripted API, with a memory cache unless told otherwise."""

    def build(**options: Any) -> AsyncAgentOrchestrator:
        settings = {"cache": "memory://", "base_url": api.url, "enable_tracking": False, **options}
        return AsyncAgentOrchestrator(config, **settings)

    return build


@pytest.fixture
def run(make: Callable[..., AsyncAgentOrchestrator]) -> Callable[..., Any]:
    """Run ``test(orchestrator)`` in an event loop of its own, and close the orchestrator after it.

    The orchestrator is the one given, or is made with the options given.
    """

    def in_loop(
        test: Callable[[AsyncAgentOrchestrator], Awaitable[Any]],
        orchestrator: Optional[AsyncAgentOrchestrator] = None,
        **options: Any,
    ) -> Any:
        async def main() -> Any:
            async with orchestrator or make(**options) as it:
                return await test(it)

        return asyncio.run(main())

    return in_loop


def message(text: str = "A good answer.", stop_reason: Optional[str] = "end_turn", **fields: Any) -> Dict[str, Any]:
    """Return the body of an answer."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [{"type": "text", "text": text}],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 1000, "output_tokens": 200},
        **fields,
    }


def failure(status: int, **error: Any) -> Dict[str, Any]:
    """Return the body of an error."""
    return {"type": "error", "error": {"type": f"error_{status}", "message": f"a reason for {status}", **error}}


class Reply:
    """What the scripted API does with one request.

    :param body: a table, sent as JSON, or bytes, sent as they are.
    :param delay: seconds before anything is sent.
    :param trickle: seconds between one byte of the body and the next.
    :param drop: close the connection without a reply.
    :param gate: wait for this event before anything is sent.
    """

    def __init__(
        self,
        body: Any = None,
        *,
        status: int = 200,
        headers: Optional[Mapping[str, str]] = None,
        delay: float = 0.0,
        trickle: float = 0.0,
        drop: bool = False,
        gate: Optional[threading.Event] = None,
    ) -> None:
        self.status = status
        body = body if body is not None else message() if status == 200 else failure(status)
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {"content-type": "application/json", "request-id": "req_1", **(headers or {})}
        self.delay = delay
        self.trickle = trickle
        self.drop = drop
        self.gate = gate


def events(text: str = "A good answer.", **fields: Any) -> List[bytes]:
    """Return the pieces of a streamed answer: its events, one for each word of the text."""
    whole = message(text, **fields)
    stop_reason, usage = whole["stop_reason"], whole["usage"]
    said: List[Dict[str, Any]] = [
        {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}},
        {"type": "ping"},
    ]
    for index, block in enumerate(whole["content"]):
        start = {**block, "text": ""} if block["type"] == "text" else block
        said.append({"type": "content_block_start", "index": index, "content_block": start})
        for word in re.findall(r"\S+\s*", block["text"]) if block["type"] == "text" else ():
            delta = {"type": "text_delta", "text": word}
            said.append({"type": "content_block_delta", "index": index, "delta": delta})
        said.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    said.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage["output_tokens"]}})
    said.append({"type": "message_stop"})
    return [b"event: %s\ndata: %s\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in said]


class Feed(Reply):
    """A streamed reply, sent piece by piece as the test gives them out.

    :ivar left: set when the client has closed the connection before the end.
    """

    def __init__(self, *pieces: bytes, end: bool = False, **options: Any) -> None:
        super().__init__(b"", **options)
        self.headers = {**self.headers, "content-type": "text/event-stream; charset=utf-8"}
        self.left = threading.Event()
        self._pieces: queue.Queue[Optional[bytes]] = queue.Queue()
        self._breaks = False
        self.give(*pieces)
        if end:
            self.end()

    def give(self, *pieces: bytes) -> None:
        """Send pieces."""
        for piece in pieces:
            self._pieces.put(piece)

    def end(self, *, breaks: bool = False) -> None:
        """End the reply in order, or by closing the connection in the middle of it."""
        self._breaks = breaks
        self._pieces.put(None)

    def pump(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        deadline = time.monotonic() + 30
        try:
            while True:
                try:
                    piece = self._pieces.get(timeout=0.02)
                except queue.Empty:
                    if select.select([handler.connection], [], [], 0)[0]:  # it has nothing to say but that it leaves
                        raise ConnectionResetError from None
                    assert time.monotonic() < deadline, "the test never ended the reply"
                    continue
                if piece is None:
                    break
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if not self._breaks:
                handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.left.set()
            raise
        handler.close_connection = self._breaks


class ScriptedAPI:
    """A Messages API that replies to a task what ``to`` has for it, else what is next in ``script``, else ``default``.

    ``answers`` comes before all of them, where a test sets it: it is given the body, and returns a text or a reply.
    ``reply``, ``message`` and ``failure`` make what a script consists of.

    :ivar requests: what came, in order: ``path``, ``body``, ``headers`` (names in lower case), ``time``, and
        ``connection``, the client's port.
    :ivar most: the most requests that were being answered at once.
    """

    reply = Reply
    feed = Feed
    events = staticmethod(events)
    message = staticmethod(message)
    failure = staticmethod(failure)

    def __init__(self) -> None:
        self.to: Dict[str, Reply] = {}
        self.answers: Optional[Callable[[Dict[str, Any]], Any]] = None
        self.script: Deque[Reply] = deque()
        self.default = Reply()
        self.requests: List[Dict[str, Any]] = []
        self.most = 0
        self._current = 0
        self._lock = threading.Lock()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                api.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exc_info()[1], OSError):  # a client that gave up is no error
                    super().handle_error(request, client_address)

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def says(self, *replies: Any) -> None:
        """Append to the script: replies, answer texts, or statuses."""
        for said in replies:
            if isinstance(said, int):
                self.script.append(Reply(status=said))
            else:
                self.script.append(Reply(message(said)) if isinstance(said, str) else said)

    async def arrived(self, count: int = 1) -> None:
        """Return once that many requests have come."""
        for _ in range(3000):
            if len(self.requests) >= count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"only {len(self.requests)} of {count} requests came")

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        said = None if self.answers is None else self.answers(body)
        with self._lock:
            content = body["messages"][0]["content"]
            reply = self.to.get(content) if isinstance(content, str) else None
            if said is not None:
                reply = Reply(message(said)) if isinstance(said, str) else said
            if reply is None:
                reply = self.script.popleft() if self.script else self.default
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.requests.append(
                {
                    "path": handler.path,
                    "body": body,
                    "headers": headers,
                    "time": time.monotonic(),
                    "connection": handler.client_address[1],
                }
            )
            self._current += 1
            self.most = max(self.most, self._current)
        try:
            self._send(handler, reply)
        finally:
            with self._lock:
                self._current -= 1

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        time.sleep(reply.delay)
        if reply.gate is not None and not reply.gate.wait(30):
            raise AssertionError("the test never opened the gate")
        if reply.drop:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if isinstance(reply, Feed):
            reply.pump(handler)
            return
        handler.send_header("content-length", str(len(reply.body)))
        handler.end_headers()
        if reply.trickle:
            for byte in reply.body:
                handler.wfile.write(bytes((byte,)))
                handler.wfile.flush()
                time.sleep(reply.trickle)
        else:
            handler.wfile.write(reply.body)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def api() -> Iterator[ScriptedAPI]:
    """A Messages API that says what the test tells it to."""
    server = ScriptedAPI()
    yield server
    server.close()


def _python_with_llmock() -> str:
    given = os.environ.get("CLAUDE_FORCE_LLMOCK_PYTHON")
    if given:
        return given
    root = Path(__file__).resolve().parents[2]
    names = [shutil.which(f"python3.{minor}") for minor in (14, 13, 12, 11, 10)]
    for python in [sys.executable, *names, str(root / ".venv" / "bin" / "python")]:
        if python is not None and Path(python).exists():
            look = subprocess.run([python, "-c", "import llmock"], capture_output=True, check=False)
            if look.returncode == 0:
                return python
    return pytest.fail(
        "no interpreter with llmock was found: `make install` makes one, or name one of Python 3.10 or newer "
        "in CLAUDE_FORCE_LLMOCK_PYTHON",
        pytrace=False,
    )


class Journal:
    """llmock with its journal."""

    def __init__(self, server: StandIn) -> None:
        self.url = server.base_url
        self._journal = f"{server.base_url[: -len('/anthropic')]}/_llmock/requests"

    def bodies(self) -> List[Dict[str, Any]]:
        with urllib.request.urlopen(self._journal, timeout=30) as reply:
            return [entry["body"] for entry in json.load(reply)["requests"]]


@pytest.fixture(scope="session")
def _llmock() -> Iterator[StandIn]:
    with StandIn(python=_python_with_llmock()) as server:
        yield server


@pytest.fixture
def stand_in(_llmock: StandIn) -> Journal:
    """llmock, its journal empty."""
    _llmock.forget()
    return Journal(_llmock)
