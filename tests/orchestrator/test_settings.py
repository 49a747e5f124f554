"""Settings: which one is in force, where it came from, and which values are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest

from claude_force_cache import CacheError, open_cache
from claude_force_orchestrator import AsyncAgentOrchestrator, ConfigError, ProjectError, Settings


def _shown(config: Path, **arguments: Any) -> Dict[str, Any]:
    return {
        setting.name: (setting.value, setting.origin) for setting in Settings.resolve(config, **arguments).describe()
    }


def test_defaults_are_shown_with_their_origin(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert _shown(config) == {
        "project": (str(config), "argument"),
        "api_key": (None, "default"),
        "base_url": ("https://api.anthropic.com", "default"),
        "max_concurrent": (10, "default"),
        "timeout_seconds": (30, "default"),
        "max_retries": (3, "default"),
        "deadline_seconds": (None, "default"),
        "raise_errors": (False, "default"),
        "enable_tracking": (True, "default"),
        "enable_memory": (False, "default"),
        "enable_cache": (True, "default"),
        "cache": (f"disk://{config.parent / 'cache'}", "default"),
        "cache_ttl_hours": (24, "default"),
        "cache_max_size_mb": (100, "default"),
        "max_age_hours": (None, "default"),
        "stale_while_revalidate_hours": (0, "default"),
        "stale_if_error_hours": (0, "default"),
        "refresh_ahead": (0.0, "default"),
        "variants": (1, "default"),
        "exclude_agents": ([], "default"),
        "on_suspicion": ("report", "default"),
        "max_usd": (None, "default"),
        "prompt_caching": (True, "default"),
    }


def test_arguments_are_shown_as_such(config: Path) -> None:
    shown = _shown(config, max_concurrent=3, timeout_seconds=5, max_retries=0, enable_tracking=False)
    assert shown["max_concurrent"] == (3, "argument")
    assert shown["timeout_seconds"] == (5, "argument")
    assert shown["max_retries"] == (0, "argument")
    assert shown["enable_tracking"] == (False, "argument")


def test_the_cache_is_chosen_by_argument_then_environment_then_file(
    config: Path, edit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(cache={"backend": "memory", "options": {"max_bytes": "7MB"}})
    assert _shown(config)["cache"] == ("memory://", "claude.json")
    monkeypatch.setenv("CLAUDE_CACHE_URL", "redis://user:hidden@host/3")
    assert _shown(config)["cache"] == ("redis://user:***@host/3", "CLAUDE_CACHE_URL")
    assert _shown(config, cache="memory://")["cache"] == ("memory://", "argument")
    edit(cache={"url": "redis://host/1"})
    monkeypatch.delenv("CLAUDE_CACHE_URL")
    assert _shown(config)["cache"] == ("redis://host/1", "claude.json")


def test_the_keys_of_the_old_system_are_honoured(config: Path, edit: Any) -> None:
    edit(
        cache={
            "enabled": False,
            "ttl_hours": 2,
            "max_size_mb": 5,
            "exclude_agents": ["code-reviewer"],
            "use_integrity_check": False,
        }
    )
    shown = _shown(config)
    assert shown["enable_cache"] == (False, "claude.json")
    assert shown["cache_ttl_hours"] == (2, "claude.json")
    assert shown["cache_max_size_mb"] == (5, "claude.json")
    assert shown["exclude_agents"] == (["code-reviewer"], "claude.json")
    assert _shown(config, enable_cache=True)["enable_cache"] == (True, "argument")
    assert _shown(config, cache_ttl_hours=3)["cache_ttl_hours"] == (3, "argument")


def test_old_keys_hold_beside_the_new_ones_and_the_caches_own_options_come_before_them(config: Path, edit: Any) -> None:
    edit(cache={"backend": "memory", "options": {"ttl": "30m"}, "ttl_hours": 2, "max_size_mb": 5})
    shown = _shown(config)
    assert shown["cache_ttl_hours"] == (0.5, "cache")
    assert shown["cache_max_size_mb"] == (5, "claude.json")
    shown = _shown(config, cache="memory://?max_bytes=1MiB")
    assert shown["cache_ttl_hours"] == (2, "claude.json")
    assert shown["cache_max_size_mb"] == (1, "cache")
    shown = _shown(config, cache={"url": "memory://?ttl=1h", "options": {"max_bytes": "2MiB"}}, cache_ttl_hours=4)
    assert shown["cache_ttl_hours"] == (4, "argument")
    assert shown["cache_max_size_mb"] == (2, "cache")


def test_a_relative_path_in_claude_json_starts_from_it(config: Path, edit: Any) -> None:
    edit(cache={"backend": "disk", "options": {"path": "../answers"}})
    assert _shown(config)["cache"][0] == f"disk://{config.parent}/../answers"


def test_the_api_is_chosen_by_argument_then_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://user:hidden@proxy:8080/api/")
    assert _shown(config)["base_url"] == ("http://***@proxy:8080/api", "ANTHROPIC_BASE_URL")
    assert _shown(config)["api_key"] == ("***", "ANTHROPIC_API_KEY")
    assert _shown(config, base_url="http://other", api_key="sk")["base_url"] == ("http://other", "argument")
    assert _shown(config, api_key="sk")["api_key"] == ("***", "argument")


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_concurrent": 0},
        {"max_concurrent": -1},
        {"max_concurrent": 1.5},
        {"max_concurrent": True},
        {"timeout_seconds": 0},
        {"timeout_seconds": -1},
        {"timeout_seconds": float("nan")},
        {"timeout_seconds": float("inf")},
        {"timeout_seconds": "30"},
        {"max_retries": -1},
        {"max_retries": 1.0},
        {"cache_ttl_hours": 0},
        {"cache_ttl_hours": -1},
        {"cache_ttl_hours": float("inf")},
        {"cache_ttl_hours": "24"},
        {"cache_max_size_mb": 0},
        {"cache_max_size_mb": -5},
        {"cache_max_size_mb": True},
        {"enable_cache": "yes"},
        {"enable_tracking": 1},
        {"cache": 7},
        {"base_url": ""},
        {"base_url": "api.anthropic.com"},
        {"base_url": "ftp://host"},
        {"base_url": "http://"},
        {"base_url": "http://host:99999"},
        {"base_url": "http://host\n"},
        {"base_url": "http://user:hidden@host?x=hidden"},
        {"api_key": "sk\n"},
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_used_is_one_line_that_names_it(config: Path, arguments: Dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        AsyncAgentOrchestrator(config, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert "hidden" not in message
    (name,) = arguments
    assert name in message or name.replace("_", " ").replace("url", "URL").replace("api", "API") in message


@pytest.mark.parametrize("digits", [400, 5000])
@pytest.mark.parametrize(("name", "sign"), [("cache_max_size_mb", 1), ("cache_ttl_hours", 1), ("max_retries", -1)])
def test_a_number_beyond_every_float_is_refused_in_a_short_line(
    config: Path, name: str, sign: int, digits: int
) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        AsyncAgentOrchestrator(config, **{name: sign * 10**digits})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"enabled": "yes"}, "cache.enabled must be true or false"),
        ({"ttl_hours": 0}, "cache.ttl_hours must be a number above 0"),
        ({"ttl_hours": "24"}, "cache.ttl_hours"),
        ({"max_size_mb": -1}, "cache.max_size_mb"),
        ({"max_size_mb": True}, "cache.max_size_mb"),
        ({"exclude_agents": "code-reviewer"}, "cache.exclude_agents must be a list"),
        ({"exclude_agents": [7]}, "cache.exclude_agents must list agents by name"),
        ({"url": 7}, "cache.url must be text"),
        ({"backend": []}, "cache.backend must be text"),
        ({"backend": "memory", "options": []}, "cache.options must be an object"),
        ({"url": "memory://", "backend": "memory"}, "both 'url' and 'backend'"),
        ({"options": {"ttl": "1h"}}, "'options' without"),
        ({"use_integrity_check": 1}, "cache.use_integrity_check"),
    ],
    ids=str,
)
def test_a_cache_section_that_cannot_be_used_is_one_line_about_where(
    config: Path, edit: Any, section: Any, part: str
) -> None:
    edit(cache=section)
    with pytest.raises(ProjectError) as caught:
        AsyncAgentOrchestrator(config)
    assert part in str(caught.value)
    assert str(config) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_without_meaning_in_the_cache_section_are_said_to_be(
    config: Path, edit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    edit(cache={"ttl_hour": 3, "exclude_agents": ["code-reviewr"]})
    AsyncAgentOrchestrator(config)
    text = caplog.text
    assert "ttl_hour" in text
    assert "code-reviewr" in text


def test_a_made_cache_cannot_be_resized(config: Path) -> None:
    cache = Settings.resolve(config, cache="memory://").make_cache()
    with pytest.raises(ConfigError, match="cache_max_size_mb"):
        AsyncAgentOrchestrator(config, cache=cache, cache_max_size_mb=5)


def test_secrets_are_in_no_representation_and_no_error(config: Path) -> None:
    settings = Settings.resolve(config, api_key="sk-hidden", cache="redis://u:hidden@h/0")
    assert "hidden" not in repr(settings) + repr(settings.describe()) + repr(settings.make_cache())
    with pytest.raises(CacheError) as caught:
        AsyncAgentOrchestrator(config, cache="redis://u:hidden@h/0?nosuch=1")
    assert "hidden" not in str(caught.value)


def test_a_cache_that_does_not_keep_answers_is_refused(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not keep answers: open it with codec=AnswerCodec\(\)"):
        AsyncAgentOrchestrator(config, cache=open_cache("memory://"))
