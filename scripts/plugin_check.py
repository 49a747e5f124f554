"""Build a third party's plugin and our wheel, install both in a fresh environment, and use the one with the other.

    python -m scripts.plugin_check

The plugin is examples/plugin-lmdb; its tests run against what is installed, away from the source tree, on this
Python and on the oldest one here. A project by ``claude-force new-backend`` goes the same way: it has to be
clean, and its tests have to fail for want of code and for nothing else. With the code that stands in
docs/how-to/write-a-backend.md they have to pass.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, List

from scripts.wheel_check import ROOT, expect, run

PLUGIN = ROOT / "examples" / "plugin-lmdb"
HOW_TO = ROOT / "docs" / "how-to" / "write-a-backend.md"
HOW_TO_FILES = ("src/*/backend.py", "src/*/__init__.py", "tests/test_conformance.py", "tests/test_plugin.py")
LEAST_TESTS = 60
MISSING = "NotImplementedError: fill in what "
ANSWER = "It keeps a list sorted."


class API:
    """A stand-in for Claude that counts the requests, and says the same to each."""

    def __init__(self) -> None:
        self.requests = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                api.requests += 1
                asked: Dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
                body = json.dumps(
                    {
                        "id": f"msg_{api.requests}",
                        "type": "message",
                        "role": "assistant",
                        "model": asked["model"],
                        "content": [{"type": "text", "text": ANSWER}],
                        "stop_reason": "end_turn",
                        "stop_sequence": None,
                        "usage": {"input_tokens": 9, "output_tokens": 5},
                    }
                ).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def running_api() -> Iterator[API]:
    api = API()
    thread = threading.Thread(target=api.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield api
    finally:
        api.server.shutdown()
        thread.join()
        api.server.server_close()


def build(source: Path, wheels: Path) -> Path:
    """Return the wheel, which is made out of the sdist."""
    before = set(wheels.glob("*.whl"))
    run(sys.executable, "-m", "build", "--outdir", wheels, source, cwd=wheels)
    (wheel,) = set(wheels.glob("*.whl")) - before
    return wheel


def install(interpreter: str, home: Path, ours: Path, plugin: Path) -> Path:
    """Return the Python of a new environment that has both wheels and what they ask for."""
    run(interpreter, "-m", "venv", home, cwd=home.parent)
    python = home / "bin" / "python"
    run(python, "-m", "pip", "install", "-qq", f"{ours}[orchestrator,testing]", plugin, cwd=home)
    run(python, "-m", "pip", "check", cwd=home)
    return python


def check_listed(python: Path, home: Path) -> None:
    (row,) = [row for row in json.loads(claude_force(python, "backends", "--json", cwd=home)) if row["name"] == "lmdb"]
    expect(row["error"] is None and row["client_installed"], f"the plugin is listed as {row}")
    expect(row["distribution"] == "claude-force-cache-lmdb", f"lmdb belongs to {row['distribution']}")
    print("listed by claude-force backends, with its options", [option["name"] for option in row["options"]])


def check_chosen(python: Path, home: Path) -> None:
    """The first task is asked, the second is answered by the plugin, chosen by one URL."""
    (home / "project" / ".claude").mkdir(parents=True)
    (home / "project" / ".claude" / "reviewer.md").write_text("You review Python code.\n", encoding="utf-8")
    config = {"version": "1.0.0", "agents": {"reviewer": {"file": "reviewer.md"}}}
    (home / "project" / ".claude" / "claude.json").write_text(json.dumps(config), encoding="utf-8")
    with running_api() as api:
        task = ("run", "reviewer", "What does bisect do?", "--json", "--cache", f"lmdb://{home}/answers")
        surroundings = {"ANTHROPIC_BASE_URL": api.url, "ANTHROPIC_API_KEY": "a-key-for-trying", "HOME": str(home)}
        calls: List[int] = []
        for _ in range(2):
            said = claude_force(python, *task, cwd=home / "project", **surroundings)
            calls.append(api.requests)
            expect(ANSWER in said, f"the orchestrator says: {said}")
    expect(calls == [1, 1], f"after the first and the second time there were {calls} requests")
    print("chosen by URL from the orchestrator: 1 request, then 0")


def claude_force(python: Path, *arguments: object, cwd: Path, **surroundings: str) -> str:
    names = [f"{name}={value}" for name, value in surroundings.items()]
    return run("env", "-u", "CLAUDE_CACHE_URL", *names, python.with_name("claude-force"), *arguments, cwd=cwd)


def check_conformance(python: Path, home: Path) -> None:
    """The plugin's own tests, copied away from the source, so that only what is installed can be imported."""
    folder = home / "plugin"
    folder.mkdir()
    shutil.copytree(PLUGIN / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PLUGIN / "pyproject.toml", folder)
    where = run(python, "-c", "import claude_force_cache_lmdb as it; print(it.__file__)", cwd=folder)
    expect(where.startswith(str(home)), f"the plugin is imported from {where}")
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    expect(" passed" in said, f"the plugin's tests say: {said}")
    print("its tests, on what is installed:", said.strip().splitlines()[-1])


def check_types(python: Path, home: Path) -> None:
    """Strict types of the plugin's sources, against the installed distributions."""
    folder = home / "sources"
    shutil.copytree(PLUGIN, folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    mypy(python, folder)
    print("its types are strict")


def mypy(python: Path, folder: Path) -> None:
    command = (sys.executable, "-m", "mypy", "--cache-dir", folder.parent / "mypy-cache")
    run(*command, "--python-executable", python, cwd=folder)


def check_new_backend(python: Path, home: Path, name: str, *flags: str) -> None:
    """A generated project is clean, installs, and its tests fail for nothing but missing code."""
    folder = home / name
    claude_force(python, "new-backend", name, "--dir", folder, *flags, cwd=home)
    for command in (("check",), ("format", "--check")):
        run(sys.executable, "-m", "ruff", *command, "--no-cache", ".", cwd=folder)
    run(python, "-m", "pip", "install", "-qq", "-e", ".[test]", cwd=folder)
    mypy(python, folder)
    words = ("-q", "-p", "no:cacheprovider", "--junitxml=report.xml")
    script = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]) != pytest.ExitCode.TESTS_FAILED)"
    run(python, "-c", script, *words, cwd=folder)
    cases = list(ET.parse(folder / "report.xml").getroot().iter("testcase"))
    failures = [case.find("failure") for case in cases]
    texts = [(failure.text or "") for failure in failures if failure is not None]
    expect(not any(case.find("error") is not None for case in cases), f"the tests of {name} end in errors")
    expect(len(texts) >= LEAST_TESTS, f"only {len(texts)} tests of {name} fail, of {len(cases)}")
    others = [text for text in texts if MISSING not in text]
    expect(not others, f"a test of {name} fails for another reason than missing code: {others[:1]}")
    print(f"new-backend {name} {' '.join(flags)}: {len(cases)} tests run, {len(texts)} fail, all for missing code")


def check_how_to(python: Path, home: Path, name: str) -> None:
    """The generated project, filled in as the how-to says, is clean and passes."""
    folder = home / name
    listings = re.findall(r"^```python\n(.*?)^```", HOW_TO.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    expect(len(listings) == len(HOW_TO_FILES), f"the how-to has {len(listings)} listings, not {len(HOW_TO_FILES)}")
    for pattern, listing in zip(HOW_TO_FILES, listings):
        (file,) = folder.glob(pattern)
        file.write_text(listing, encoding="utf-8")
    for command in (("check",), ("format", "--check")):
        run(sys.executable, "-m", "ruff", *command, "--no-cache", ".", cwd=folder)
    mypy(python, folder)
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    print("filled in as the how-to says:", said.strip().splitlines()[-1])
    claude_force(python, "conformance", f"{name}://{home}/{name}.db", "--examples", "5", cwd=home)
    print("and by claude-force conformance")


def main() -> None:
    began = time.perf_counter()
    oldest = run(sys.executable, ROOT / "scripts" / "find_python.py", "oldest", cwd=ROOT).strip()
    with tempfile.TemporaryDirectory(prefix="plugin-check-") as name:
        folder = Path(name).resolve()
        wheels = folder / "wheels"
        wheels.mkdir()
        ours, plugin = build(ROOT, wheels), build(PLUGIN, wheels)
        print(f"built {ours.name} and {plugin.name}")
        home = folder / "ours"
        python = install(sys.executable, home, ours, plugin)
        check_listed(python, home)
        check_chosen(python, home)
        check_conformance(python, home)
        check_types(python, home)
        check_new_backend(python, home, "crate", "--blocking")
        check_how_to(python, home, "crate")
        check_new_backend(python, home, "chest-of-drawers")
        home = folder / "oldest"
        print("with", run(oldest, "--version", cwd=folder).strip())
        python = install(oldest, home, ours, plugin)
        check_listed(python, home)
        check_conformance(python, home)
    print(f"ok in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
