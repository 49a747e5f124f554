"""The real command line in processes of its own, against a real local Messages API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import pytest

from claude_force_orchestrator.demo._standin import StandIn

_SECRET = "a secret for tests, long enough"


def _has_llmock(python: str) -> bool:
    probe = subprocess.run([python, "-c", "import llmock"], capture_output=True, check=False)
    return probe.returncode == 0


def _llmock_python() -> str:
    """Return an interpreter that has llmock: this one, or a newer one that is installed beside it."""
    candidates: List[Optional[str]] = [os.environ.get("CLAUDE_FORCE_LLMOCK_PYTHON")]
    if sys.version_info >= (3, 10):
        candidates.append(sys.executable)
    repository = Path(__file__).parents[2]
    candidates.append(str(repository / ".venv" / "bin" / "python"))
    candidates += [shutil.which(f"python3.{minor}") for minor in (13, 12, 11, 10)]
    for candidate in candidates:
        if candidate and shutil.which(candidate) and _has_llmock(candidate):
            return candidate
    pytest.fail(
        "no Python 3.10 or newer with llmock was found: run `make install`, or set CLAUDE_FORCE_LLMOCK_PYTHON",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def llmock_python() -> str:
    return _llmock_python()


@pytest.fixture(scope="session")
def running_api(llmock_python: str) -> Iterator[StandIn]:
    with StandIn(python=llmock_python) as server:
        yield server


@pytest.fixture
def api(running_api: StandIn) -> StandIn:
    """The local Messages API, which has counted nothing yet."""
    running_api.forget()
    return running_api


class ForkServer:
    """Runs commands in processes that need not import anything; see forkserver.py."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forkserver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, arguments: Sequence[str], folder: Path, environment: Dict[str, str], stdin: bytes) -> Finished:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        files = {name: self._folder / name for name in ("stdin", "stdout", "stderr")}
        for name, path in files.items():
            path.write_bytes(stdin if name == "stdin" else b"")
        order = {
            "arguments": list(arguments),
            "folder": str(folder),
            "environment": environment,
            **{name: str(path) for name, path in files.items()},
        }
        self._process.stdin.write(json.dumps(order).encode("ascii") + b"\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Finished(code, files["stdout"].read_text("utf-8"), files["stderr"].read_text("utf-8"))

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def forkserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("forkserver"))
    yield server
    server.close()


@dataclass
class CommandLine:
    """``claude-force`` as a user of a fresh account has it: own home, own environment, own folder."""

    folder: Path
    environment: Dict[str, str]
    server: ForkServer

    def __call__(self, *arguments: str, stdin: bytes = b"", **environment: Optional[str]) -> Finished:
        return self.server.run(arguments, self.folder, self._env(environment), stdin)

    def process(self, *arguments: str, **environment: Optional[str]) -> Finished:
        """Run the command from nothing, as a shell does."""
        done = subprocess.run(
            self._command(arguments),
            cwd=self.folder,
            env=self._env(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Finished(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command(arguments), cwd=self.folder, env=self._env({}), **options)

    def _env(self, changes: Dict[str, Optional[str]]) -> Dict[str, str]:
        merged = {**self.environment, **changes}
        return {name: value for name, value in merged.items() if value is not None}

    @staticmethod
    def _command(arguments: Sequence[str]) -> List[str]:
        return [sys.executable, "-m", "claude_force_orchestrator.cli", *arguments]


@dataclass
class Finished:
    code: int
    out: str
    err: str
    json: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.out[:1] in {"{", "["}:
            try:
                self.json = json.loads(self.out)
            except ValueError:
                pass  # results as lines, not one document

    def assert_refused(self, *words: str, code: int = 2) -> None:
        """One line that names the cause and the remedy, the exit code, and nothing else."""
        assert self.code == code, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in lines[0], self.err


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a small project in it."""
    folder = tmp_path / "project"
    agents = folder / ".claude" / "agents"
    agents.mkdir(parents=True)
    (agents / "reviewer.md").write_text("You review Python code.\n")
    (agents / "writer.md").write_text("You write documentation.\n")
    write_config(folder, {"reviewer": {"file": "agents/reviewer.md"}, "writer": {"file": "agents/writer.md"}})
    return folder


def write_config(folder: Path, agents: object, **sections: object) -> None:
    (folder / ".claude" / "claude.json").write_text(json.dumps({"version": "1.0.0", "agents": agents, **sections}))


@pytest.fixture
def configure(project: Path) -> Callable[..., None]:
    """Rewrite the project's claude.json: its agents, then sections by name."""
    return lambda agents, **sections: write_config(project, agents, **sections)


@pytest.fixture
def lonely_cli(project: Path, tmp_path: Path, forkserver: ForkServer) -> CommandLine:
    """The command line in the project, without an API, a key, a cache or a secret in its environment."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ANTHROPIC_", "CLAUDE_", "XDG_")) and name.lower() not in {"http_proxy", "https_proxy"}
    }
    home = tmp_path / "home"
    home.mkdir()
    return CommandLine(project, {**kept, "HOME": str(home)}, forkserver)


@pytest.fixture
def cli(lonely_cli: CommandLine, api: StandIn, tmp_path: Path) -> CommandLine:
    """The command line with the local API and a cache of its own on disk."""
    lonely_cli.environment.update(
        ANTHROPIC_BASE_URL=api.base_url,
        ANTHROPIC_API_KEY="a-key-for-tests",
        CLAUDE_CACHE_SECRET=_SECRET,
        CLAUDE_CACHE_URL=f"disk://{tmp_path}/cache",
    )
    return lonely_cli
