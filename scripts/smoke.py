"""Try the installed distribution with one extra and nothing else; prints one line, or fails.

python -I smoke.py base|disk|redis|memcached|orchestrator|testing|demo|all
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Callable, Dict, Iterator, List

from claude_force_cache import MISSING, MissingClientError, list_backends, open_cache

CLIENTS = {"disk": "diskcache", "redis": "redis", "memcached": "pymemcache"}
BROUGHT_BY = {"disk": ("disk", "demo", "all"), "redis": ("redis", "all"), "memcached": ("memcached", "all")}
SECRET = "a secret for trying things out, 32 bytes or more"
DEADLINE = 20.0  # seconds

READER = """
import asyncio, sys
from claude_force_cache import open_cache

async def main():
    async with open_cache(sys.argv[1], secrets=[sys.argv[2]]) as cache:
        print(await cache.get("question"))

asyncio.run(main())
"""


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"error: {message}")


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


async def store_and_hit(url: str) -> None:
    async with open_cache(url, secrets=[SECRET]) as cache:
        await cache.ping()
        expect(await cache.get("question") is MISSING, f"{url} begins with an answer")
        expect(await cache.set("question", "answer"), f"{url} did not store")
        expect(await cache.get("question") == "answer", f"{url} does not return what was stored")
        expect((await cache.usage()).entries == 1, f"{url} does not count one entry")


def read_in_another_process(url: str) -> str:
    command = [sys.executable, "-I", "-c", READER, url, SECRET]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def server(command: str) -> Iterator[str]:
    """Run a server on a free port until the block ends, and yield its address.

    It is ours if it still runs once the port answers: a server whose port is taken ends at once.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = shlex.split(command.format(port=port))
    expect(shutil.which(words[0]) is not None, f"{words[0]} is missing: make servers")
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
        words, cwd=folder, stdout=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + DEADLINE
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                expect(time.monotonic() < deadline, f"{words[0]} does not answer")
                time.sleep(0.02)
            expect(process.poll() is None, f"{words[0]} ended, and something else has its port")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def try_memory() -> None:
    names = {backend.name for backend in list_backends()}
    expect(names == {"memory", *CLIENTS}, f"listed are {sorted(names)}")
    asyncio.run(store_and_hit("memory://"))


def try_missing_clients() -> None:
    """Each backend whose client is not here says in one line how to get it."""
    for name, module in CLIENTS.items():
        if installed(module):
            continue
        try:
            open_cache(f"{name}://")
        except MissingClientError as error:
            message = str(error)
            remedy = f"pip install 'claude-force-cache[{name}]'"
            expect(remedy in message and "\n" not in message, f"{name} without its client says: {message}")
        else:
            expect(False, f"{name} opens without its client")


def try_shared(url: str) -> None:
    asyncio.run(store_and_hit(url))
    expect(read_in_another_process(url) == "answer", f"another process does not find the entry in {url}")


def try_disk() -> None:
    with tempfile.TemporaryDirectory() as folder:
        try_shared(f"disk://{folder}/cache")


def try_redis() -> None:
    with server("redis-server --bind 127.0.0.1 --port {port} --save '' --daemonize no") as address:
        try_shared(f"redis://{address}/0")


def try_memcached() -> None:
    user = "-u nobody" if os.geteuid() == 0 else ""
    with server(f"memcached -l 127.0.0.1 -p {{port}} -U 0 {user}") as address:
        try_shared(f"memcached://{address}")


def try_orchestrator() -> None:
    import claude_force_orchestrator

    expect(bool(claude_force_orchestrator.__all__), "the orchestrator exports nothing")
    loaded = {"typer", "rich", "anthropic"} & set(sys.modules)
    expect(not loaded, f"importing the orchestrator as a library imports {sorted(loaded)}")
    command = str(Path(sys.executable).with_name("claude-force"))
    listed = subprocess.run([command, "backends", "--json"], stdout=subprocess.PIPE, text=True, check=True)
    json.loads(listed.stdout)
    expect(all(f'"{name}"' in listed.stdout for name in ("memory", *CLIENTS)), f"listed are {listed.stdout}")
    shown = subprocess.run([command, "--help"], stdout=subprocess.PIPE, text=True, check=True)
    expect("backends" in shown.stdout, "claude-force --help does not name its commands")


def try_no_command_line() -> None:
    """The command is there in every installation; without its libraries it says how to get them."""
    command = str(Path(sys.executable).with_name("claude-force"))
    done = subprocess.run([command, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    remedy = "pip install 'claude-force-cache[orchestrator]'"
    expect(done.returncode == 2 and remedy in done.stdout, f"without its extra, claude-force says: {done.stdout}")
    expect(done.stdout.count("\n") == 1, f"that takes more than one line: {done.stdout}")


def try_testing() -> None:
    expect(
        installed("pytest") and installed("hypothesis"),
        "the extra testing does not bring pytest and hypothesis",
    )


def try_demo() -> None:
    """The demonstration, by the agents that came with the wheel, on the cache that needs nothing else."""
    command = str(Path(sys.executable).with_name("claude-force"))
    with tempfile.TemporaryDirectory() as folder:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC_", "CLAUDE_"))}
        done = subprocess.run(
            [command, "demo", "--json", "--cache", "memory://"],
            cwd=folder,
            env={**clean, "HOME": folder},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    first, second = json.loads(done.stdout)["passes"]
    expect(first["api_calls"] > 0 and second["api_calls"] == 0, f"the demonstration says {done.stdout}")


TRIALS: Dict[str, List[Callable[[], None]]] = {
    "base": [],
    "disk": [try_disk],
    "redis": [try_redis],
    "memcached": [try_memcached],
    "orchestrator": [try_orchestrator],
    "testing": [try_testing],
    "demo": [try_disk, try_orchestrator, try_demo],
    "all": [try_disk, try_redis, try_memcached, try_orchestrator, try_testing],
}


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in TRIALS:
        sys.exit(__doc__)
    extra = sys.argv[1]
    for name, module in CLIENTS.items():
        expect(installed(module) == (extra in BROUGHT_BY[name]), f"{module} with {extra}: {installed(module)}")
    trials = [try_memory, try_missing_clients, *TRIALS[extra]]
    if not installed("typer"):
        trials.append(try_no_command_line)
    for trial in trials:
        trial()
    names = (trial.__name__[len("try_") :].replace("_", " ") for trial in trials)
    print(f"{version('claude-force-cache')}: {', '.join(names)}")


if __name__ == "__main__":
    main()
