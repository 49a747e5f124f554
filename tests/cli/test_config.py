"""``claude-force config show``: what is in force and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

SECRET = "a secret that nobody may see"


def shown(cli: Any, *arguments: str, **environment: Any) -> Dict[str, Tuple[Any, str]]:
    done = cli("config", "show", "--json", *arguments, **environment)
    assert (done.code, done.err) == (0, "")
    return {row["name"]: (row["value"], row["origin"]) for row in done.json}


def test_every_value_tells_where_it_came_from(lonely_cli: Any, configure: Any, project: Path) -> None:
    rows = shown(lonely_cli)
    assert rows["cache"] == (f"disk://{project.resolve()}/.claude/cache", "default")
    assert rows["cache_ttl_hours"] == (24.0, "default")
    assert rows["max_concurrent"] == (10, "default")
    assert rows["project"] == (".claude/claude.json", "default")

    agents = {"reviewer": {"file": "agents/reviewer.md"}}
    configure(agents, cache={"url": "memory://?tier_ttl=5s", "ttl_hours": 2, "exclude_agents": ["reviewer"]})
    rows = shown(lonely_cli)
    assert rows["cache"] == ("memory://", "claude.json")
    assert rows["cache.tier_ttl"] == (5.0, "claude.json")
    assert rows["cache_ttl_hours"] == (2.0, "claude.json")
    assert rows["exclude_agents"] == (["reviewer"], "claude.json")

    assert shown(lonely_cli, CLAUDE_CACHE_URL="disk:///tmp/x")["cache"] == ("disk:///tmp/x", "CLAUDE_CACHE_URL")
    assert shown(lonely_cli, "--cache", "disk:///tmp/y", CLAUDE_CACHE_URL="disk:///tmp/x")["cache"] == (
        "disk:///tmp/y",
        "argument",
    )


def test_secrets_are_masked_and_their_origin_is_told(lonely_cli: Any) -> None:
    environment = {
        "CLAUDE_CACHE_SECRET": SECRET,
        "ANTHROPIC_API_KEY": "sk-hidden",
        "CLAUDE_CACHE_URL": "redis://team:hunter2@host/0?namespace=team",
        "ANTHROPIC_BASE_URL": "https://user:hunter3@host/api",
    }
    rows = shown(lonely_cli, **environment)
    assert rows["cache_secret"] == ("***", "CLAUDE_CACHE_SECRET")
    assert rows["api_key"] == ("***", "ANTHROPIC_API_KEY")
    assert rows["cache"] == ("redis://team:***@host/0", "CLAUDE_CACHE_URL")
    for arguments in ([], ["--json"]):
        done = lonely_cli("config", "show", *arguments, **environment)
        for hidden in (SECRET, "sk-hidden", "hunter2", "hunter3"):
            assert hidden not in done.out + done.err


def test_a_missing_secret_is_told(lonely_cli: Any) -> None:
    assert shown(lonely_cli, CLAUDE_CACHE_URL="redis://host")["cache_secret"][0] is None
    assert shown(lonely_cli, CLAUDE_CACHE_URL="memory://")["cache_secret"][1] == "this process only"


def test_looking_makes_nothing(lonely_cli: Any, project: Path) -> None:
    before = sorted(project.rglob("*"))
    home = Path(lonely_cli.environment["HOME"])
    shown(lonely_cli)
    assert sorted(project.rglob("*")) == before
    assert list(home.iterdir()) == []


def test_the_table_has_the_same_rows(lonely_cli: Any) -> None:
    table = lonely_cli("config", "show").out
    for name in shown(lonely_cli):
        assert name in table


def test_the_prices_are_listed_with_their_day_and_their_source(lonely_cli: Any) -> None:
    table = lonely_cli("config", "prices").out
    assert "batches cost 50.0 % of it" in table
    rows = lonely_cli("config", "prices", "--json", "--model", "claude-haiku-5-5").json
    assert [(row["max_prompt_tokens"], row["input"], row["output"]) for row in rows] == [
        (100_000, 0.1, 0.5),
        (None, 0.5, 2.5),
    ]
    assert all(row["valid_from"] == "2026-11-01" and "November 2026" in row["source"] for row in rows)


def test_a_model_without_a_price_is_said_to_have_none(lonely_cli: Any) -> None:
    done = lonely_cli("config", "prices", "--model", "gpt-4")
    assert done.code == 1
    assert "the price of 'gpt-4' is not known: add it to the section prices of claude.json" in done.err
