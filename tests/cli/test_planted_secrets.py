"""No command shows a secret: not when all is well, not when the store or the API refuses, not when neither is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple
from urllib.parse import quote

import pytest
import redis
import typer.main

from claude_force_orchestrator.cli._app import app

MARK = "planted"
PASSWORD = f"{MARK}-pa@ss/w:o#r?d[%41]\u00e9 "
SECRETS = {
    "ANTHROPIC_API_KEY": f"sk-ant-{MARK}-key",
    "CLAUDE_CACHE_SECRET": f"{MARK}-secret, long enough",
    "CLAUDE_CACHE_PREVIOUS_SECRETS": f"{MARK}-previous secret of before",
}
VALUES = {"agent": "reviewer", "tasks": "tasks.jsonl", "key": "0" * 64, "name": "absent-one", "number": "1"}
"""What an argument of this name is given; any other one, a text."""

LONG = {"conformance", "demo"}
"""Commands that take their time where they get through."""


def commands(command: Any = None, path: Tuple[str, ...] = ()) -> Iterator[Tuple[str, Any]]:
    """Return every command that there is, so that a new one is tried without being named here."""
    command = command or typer.main.get_command(app)
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from commands(below, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(commands())


def calls(name: str, url: str) -> List[List[str]]:
    """Return the command as people type it, and with its flags."""
    parameters = COMMANDS[name].params
    given = [
        url if parameter.name == "url" else VALUES.get(parameter.name, "Some text.")
        for parameter in parameters
        if parameter.param_type_name == "argument"
    ]
    known = {option for parameter in parameters for option in parameter.opts}
    plain = [*name.split(), *given, *(["--yes"] if "--yes" in known else [])]
    if "--deadline" in known:
        plain += ["--deadline", "1"]
    return [plain, *([*plain, flag] for flag in ("--json", "--all", "--repair") if flag in known)]


@pytest.fixture
def guarded_redis(start_server: Any) -> str:
    """The ``host:port`` of a server that wants the password."""
    server = start_server("redis")
    with redis.Redis(host=server.host, port=server.port) as client:
        client.config_set("requirepass", PASSWORD)
    return f"{server.host}:{server.port}"


def assert_nothing_shows(cli: Any, url: str, names: List[str], **environment: str) -> Dict[str, int]:
    (cli.folder / "tasks.jsonl").write_text('"A task."\n"Another task."\n')
    codes: Dict[str, int] = {}
    for name in names:
        for call in calls(name, url):
            done = cli(*call, CLAUDE_CACHE_URL=url, **{**SECRETS, **environment})
            shown = done.out + done.err
            assert MARK not in shown, (call, shown)
            assert "Traceback" not in shown, (call, shown)
            codes[name] = min(done.code, codes.get(name, done.code))
    for path in Path(cli.folder).rglob("*"):
        assert not path.is_file() or MARK.encode() not in path.read_bytes(), path
    return codes


def test_no_command_shows_a_secret_when_all_is_well(cli: Any, guarded_redis: str) -> None:
    url = f"redis://:{quote(PASSWORD, safe='')}@{guarded_redis}/0"
    codes = assert_nothing_shows(cli, url, [name for name in COMMANDS if name not in LONG])
    worked = {"run", "map", "config show", "cache stats", "cache ls", "cache verify", "cache explain", "cache clear"}
    assert {name for name in worked if codes[name] != 0} == set()


def test_no_command_shows_a_secret_that_is_refused(lonely_cli: Any, guarded_redis: str, absent_server: str) -> None:
    url = f"redis://someone:{quote(PASSWORD[1:] + MARK, safe='')}@{guarded_redis}/0"
    refusing = f"http://user:{MARK}-login@{absent_server}"
    codes = assert_nothing_shows(
        lonely_cli, url, [name for name in COMMANDS if name != "demo"], ANTHROPIC_BASE_URL=refusing
    )
    assert codes["cache stats"] == 2


@pytest.mark.parametrize(
    "url",
    [
        "redis://:{password}@{absent}/0?unknown=1",
        "redis://:{password}@{absent}/none",
        "redis://:{password}@{absent},{absent}",
        "redis://:{password}@[half/0",
        "memcached://:{password}@{absent}",
        "disk://:{password}@/somewhere",
        "nothing://:{password}@{absent}",
        "redis://{absent}/0?sentinel_password={password}",
    ],
)
def test_an_error_about_a_url_shows_no_password(lonely_cli: Any, absent_server: str, url: str) -> None:
    given = url.format(password=quote(PASSWORD, safe=""), absent=absent_server)
    assert assert_nothing_shows(lonely_cli, given, ["cache stats", "config show"])["cache stats"] == 2
