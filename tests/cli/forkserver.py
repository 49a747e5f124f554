"""A process that has the command line imported already, and forks one child for every command.

Each command runs in a process of its own, with its own folder, environment and standard streams, as it would
from a shell, without the seconds that importing everything takes.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import traceback

import anthropic  # noqa: F401
import redis.asyncio  # noqa: F401

import claude_force_backends
import claude_force_cache
import claude_force_orchestrator
from claude_force_orchestrator.cli import main

# Commands import what they need when they need it. What one child imports, the next would have to import again.
for package in (claude_force_cache, claude_force_backends, claude_force_orchestrator):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__") and ".scaffold" not in module.name:
            importlib.import_module(module.name)


def serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)}\n")
        sys.stdout.flush()


def run(order: dict) -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(os.open(order[name], (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)[number]), number)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    code = 99
    try:
        main(order["arguments"])
    except SystemExit as done:
        code = done.code or 0
    except BaseException:  # noqa: BLE001 - a defect has to be seen by the test
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
