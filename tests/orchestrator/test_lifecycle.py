"""Opening, closing, several event loops, and caches that cannot be used."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import subprocess
import sys
import textwrap
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from claude_force_backends.memory import MemoryBackend
from claude_force_cache import (
    BackendError,
    BackendSettings,
    BackendURL,
    Cache,
    ConfigurationError,
    ForeignStoreError,
    SecretError,
    UnknownBackendError,
    open_cache,
)
from claude_force_orchestrator import AnswerCodec, AsyncAgentOrchestrator, ConfigError


def test_a_second_event_loop_works_without_closing_in_between(make: Any, api: Any) -> None:
    orchestrator = make()
    for task in ("one", "two", "one"):
        result = asyncio.run(orchestrator.execute_agent("code-reviewer", task))
        assert result.success, result.errors
    assert len(api.requests) == 2
    asyncio.run(orchestrator.close())


def test_no_connection_is_left_open(make: Any, api: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for close in (True, False):
            orchestrator = make()

            async def main(close: bool = close, it: AsyncAgentOrchestrator = orchestrator) -> None:
                await it.execute_agent("code-reviewer", "x")
                if close:
                    await it.close()

            asyncio.run(main())
            asyncio.run(orchestrator.close())
            del orchestrator
            gc.collect()
    assert not [str(warning.message) for warning in caught if warning.category is ResourceWarning]


def test_closing_twice_is_fine_and_using_it_again_opens_again(make: Any, api: Any) -> None:
    orchestrator = make(cache=None)

    async def main() -> None:
        await orchestrator.close()
        await orchestrator.close()
        for cached in (False, True):
            assert (await orchestrator.execute_agent("code-reviewer", "x")).metadata.cached is cached
            await orchestrator.close()

    asyncio.run(main())


def test_async_with_works_in_two_event_loops(make: Any, run: Any, api: Any) -> None:
    orchestrator = make(cache=None)
    for cached in (False, True):
        result = run(lambda it: it.execute_agent("code-reviewer", "x"), orchestrator)
        assert result.metadata.cached is cached


def test_a_given_cache_stays_its_owners(make: Any, api: Any) -> None:
    async def main() -> None:
        async with open_cache("memory://", codec=AnswerCodec()) as cache:
            for cached in (False, True):
                async with make(cache=cache) as orchestrator:
                    assert orchestrator.cache is cache
                    assert (await orchestrator.execute_agent("code-reviewer", "x")).metadata.cached is cached
            assert len([stored async for stored in cache.scan() if stored.value is not None]) == 1

    asyncio.run(main())


def test_a_given_cache_that_its_owner_closed_costs_no_answer(
    make: Any, api: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cache = open_cache("memory://", codec=AnswerCodec())
        async with cache:
            orchestrator = make(cache=cache)
        for _ in range(3):
            assert (await orchestrator.execute_agent("code-reviewer", "x")).success
        await orchestrator.close()

    asyncio.run(main())
    assert len(api.requests) == 3
    assert len([record for record in caplog.records if "answered without it" in record.message]) == 1


@pytest.mark.parametrize("verb", ["get", "set"])
@pytest.mark.parametrize("error", [BackendError("odd"), RuntimeError("a defect of the backend")], ids=repr)
def test_a_backend_that_breaks_its_contract_costs_no_answer_and_no_second_call(
    make: Any, api: Any, caplog: pytest.LogCaptureFixture, verb: str, error: Exception
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise error

    async def main() -> None:
        backend = type("Faulty", (MemoryBackend,), {verb: fail, f"{verb}_many": fail})(
            BackendSettings(BackendURL("faulty"))
        )
        settings = open_cache("memory://").settings
        cache = Cache(
            backend, name="faulty", url="faulty://", codec=AnswerCodec(), settings=settings, options={}, secrets=None
        )
        async with cache, make(cache=cache) as orchestrator:
            for _ in range(2):
                result = await orchestrator.execute_agent("code-reviewer", "x")
                assert (result.success, result.output) == (True, "A good answer.")
                assert result.metadata.estimated_cost == pytest.approx(0.0002)

    asyncio.run(main())
    assert len(api.requests) == 2
    assert len([record for record in caplog.records if "answered without it" in record.message]) == 1


def test_the_life_of_entries_in_a_given_cache_can_be_set(make: Any, api: Any) -> None:
    now = 1_800_000_000.0

    async def main() -> None:
        nonlocal now
        cache = open_cache("memory://", codec=AnswerCodec(), clock=lambda: now)
        async with cache, make(cache=cache, cache_ttl_hours=1) as orchestrator:
            await orchestrator.execute_agent("code-reviewer", "x")
            now += 3600
            assert not (await orchestrator.execute_agent("code-reviewer", "x")).metadata.cached

    asyncio.run(main())


def test_a_cache_that_cannot_be_configured_is_an_error_of_the_constructor(make: Any) -> None:
    with pytest.raises(UnknownBackendError):
        make(cache="nosuch://")
    with pytest.raises(ConfigurationError):
        make(cache="memory://?nosuch=1")
    with pytest.raises(ConfigError):
        make(cache=7)


def test_a_folder_that_is_not_a_cache_is_refused_and_left_alone(make: Any, run: Any, api: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.json").write_text("{}")
    orchestrator = make(cache=f"disk://{folder}")
    with pytest.raises(ForeignStoreError):
        run(lambda it: it.execute_agent("code-reviewer", "x"), orchestrator)
    with pytest.raises(ForeignStoreError):
        asyncio.run(orchestrator.execute_agent("code-reviewer", "x"))
    assert [path.name for path in folder.iterdir()] == ["thesis.json"]
    assert not api.requests


def test_a_shared_cache_without_a_secret_is_refused_before_anything_is_sent(
    make: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLAUDE_CACHE_SECRET")
    with pytest.raises(SecretError):
        asyncio.run(make(cache="redis://127.0.0.1:1").execute_agent("code-reviewer", "x"))
    assert not api.requests


def test_a_cache_server_that_is_not_there_costs_no_answer(make: Any, run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> Any:
        return [(await it.execute_agent("code-reviewer", f"x{index}")).success for index in range(5)]

    assert run(ask, cache="redis://127.0.0.1:1") == [True] * 5


@pytest.mark.parametrize("path", ["/dev/null/cache", "/proc/cache"])
def test_a_folder_that_cannot_be_made_or_written_costs_no_answer(run: Any, api: Any, path: str) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> Any:
        return [(await it.execute_agent("code-reviewer", f"x{index}")).success for index in range(3)]

    assert run(ask, cache=f"disk://{path}") == [True] * 3
    assert len(api.requests) == 3


def test_a_cache_on_redis_is_shared_by_orchestrators(
    make: Any, run: Any, api: Any, redis_server: Any, namespace: str
) -> None:
    for cached in (False, True):
        result = run(
            lambda it: it.execute_agent("code-reviewer", "x"), cache=f"{redis_server.url}?namespace={namespace}"
        )
        assert result.metadata.cached is cached


def test_the_sdk_is_imported_in_a_thread_of_its_own(config: Path, api: Any) -> None:
    script = """
        import asyncio, sys, threading
        from claude_force_orchestrator import AsyncAgentOrchestrator

        class Finder:
            threads = []

            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "anthropic":
                    self.threads.append(threading.current_thread())

        sys.meta_path.insert(0, Finder())

        async def main():
            async with AsyncAgentOrchestrator(sys.argv[1], base_url=sys.argv[2], cache="memory://") as orchestrator:
                assert (await orchestrator.execute_agent("code-reviewer", "x")).success

        asyncio.run(main())
        assert Finder.threads
        assert threading.main_thread() not in Finder.threads, len(Finder.threads)
    """
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(config), api.url], check=True, timeout=60
    )


def test_importing_and_constructing_does_not_import_the_sdk(config: Path) -> None:
    script = """
        import sys
        from claude_force_orchestrator import AsyncAgentOrchestrator
        AsyncAgentOrchestrator(sys.argv[1])
        assert "anthropic" not in sys.modules
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(config)], check=True, timeout=60)


def test_executions_are_recorded_even_if_nobody_closes(config: Path, api: Any) -> None:
    script = """
        import asyncio, sys
        from claude_force_orchestrator import AsyncAgentOrchestrator
        orchestrator = AsyncAgentOrchestrator(sys.argv[1], base_url=sys.argv[2], cache="memory://")
        assert asyncio.run(orchestrator.execute_agent("code-reviewer", "x")).success
    """
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(config), api.url], check=True, timeout=60
    )
    with closing(sqlite3.connect(str(config.parent / "metrics" / "executions.db"))) as file:
        assert file.execute("SELECT outcome FROM executions").fetchall() == [("miss",)]
