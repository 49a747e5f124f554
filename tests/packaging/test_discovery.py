"""Backends are found by the entry points of real distributions, one at a time; a bad one harms no other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, Callable, Dict, Mapping, Tuple

import pytest

FIRST_PARTY = {"disk", "memcached", "memory", "redis"}
UNHARMED = dict.fromkeys(FIRST_PARTY)
JAR = (Path(__file__).parent / "plugin" / "jar_backend.py").read_text(encoding="utf-8")

Install = Callable[..., None]
Run = Callable[[str], Any]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


@pytest.fixture
def install(site: Path) -> Install:
    """Return a function that lays a distribution out as an installer does: modules and metadata."""

    def install(name: str, backends: Mapping[str, str], modules: Mapping[str, str], version: str = "1.0") -> None:
        for module, source in modules.items():
            site.joinpath(f"{module}.py").write_text(dedent(source), encoding="utf-8")
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        info.joinpath("METADATA").write_text(metadata, encoding="utf-8")
        lines = "".join(f"{backend} = {target}\n" for backend, target in backends.items())
        info.joinpath("entry_points.txt").write_text(f"[claude_force_cache.backends]\n{lines}", encoding="utf-8")

    return install


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """Return a function that runs a program in a fresh interpreter and returns what it prints, from JSON.

    The program's ``attempt(function)`` returns the name and the message of what the function raises, or null.
    """

    prelude = """
        import json, sys
        from claude_force_cache import CacheError, list_backends, load_backend, open_cache

        def attempt(function):
            try:
                function()
            except CacheError as error:
                return type(error).__name__, str(error)
    """

    def run(program: str) -> Any:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CLAUDE_")}
        done = subprocess.run(
            [sys.executable, "-c", dedent(prelude) + dedent(program)],
            cwd=tmp_path,
            env={**clean, "PYTHONPATH": str(site), "HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    return run


def open_jar(run: Run) -> Tuple[str, str]:
    """Return the name of the error and its message, which takes one line."""
    error: Tuple[str, str] = run("print(json.dumps(attempt(lambda: open_cache('jar://'))))")
    assert "\n" not in error[1]
    return error


def load_others(run: Run) -> Dict[str, object]:
    """Return what comes of loading each backend of the package itself: an error, or None for none."""
    outcome: Dict[str, object] = run(
        f"print(json.dumps({{name: attempt(lambda: load_backend(name)) for name in {sorted(FIRST_PARTY)}}}))"
    )
    return outcome


def test_a_third_partys_backend_is_listed_with_its_distribution(install: Install, run: Run) -> None:
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": JAR}, version="2.3")
    listed = run("print(json.dumps([(i.name, i.distribution, i.version) for i in list_backends()]))")
    assert ["jar", "jar-cache", "2.3"] in listed
    assert {name for name, distribution, _ in listed if distribution == "claude-force-cache"} == FIRST_PARTY
    assert listed == sorted(listed)


def test_a_third_partys_backend_is_opened_by_its_url(install: Install, run: Run) -> None:
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": JAR})
    program = """
        import asyncio

        async def main():
            async with open_cache("jar://?max_bytes=1MB") as cache:
                await cache.set("question", "answer")
                entries = (await cache.usage()).entries
                return cache.name, await cache.get("question"), entries, await cache.clear()

        print(json.dumps(asyncio.run(main())))
    """
    assert run(program) == ["jar", "answer", 1, 1]


def test_listing_imports_no_plugin_and_no_client_library(install: Install, run: Run) -> None:
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": "raise SystemExit('imported')"})
    program = """
        names = [info.name for info in list_backends()]
        roots = {name.partition(".")[0] for name in sys.modules}
        unwanted = {"jar_backend", "claude_force_backends", "diskcache", "redis", "pymemcache"}
        print(json.dumps([names, sorted(roots & unwanted)]))
    """
    names, imported = run(program)
    assert set(names) == {*FIRST_PARTY, "jar"}
    assert imported == []


def test_choosing_one_backend_imports_no_other(install: Install, run: Run) -> None:
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": JAR})
    install("lid-cache", {"lid": "lid_backend"}, {"lid_backend": "raise SystemExit('imported')"})
    program = """
        load_backend("jar")
        print(json.dumps(sorted({"jar_backend", "lid_backend", "claude_force_backends"} & set(sys.modules))))
    """
    assert run(program) == ["jar_backend"]


def test_a_name_that_two_distributions_claim_is_an_error_that_names_both(install: Install, run: Run) -> None:
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": JAR}, version="2.3")
    install("other-jar", {"jar": "other_jar"}, {"other_jar": JAR}, version="0.9")
    kind, message = open_jar(run)
    assert kind == "DuplicateBackendError"
    assert "jar-cache 2.3" in message
    assert "other-jar 0.9" in message
    assert "pip uninstall" in message
    assert load_others(run) == UNHARMED


def test_a_taken_name_of_the_package_itself_is_an_error_too(install: Install, run: Run) -> None:
    install("memory-thief", {"memory": "jar_backend"}, {"jar_backend": JAR})
    kind, message = run("print(json.dumps(attempt(lambda: open_cache('memory://'))))")
    assert kind == "DuplicateBackendError"
    assert "memory-thief 1.0" in message
    assert "claude-force-cache" in message


def test_one_distribution_that_is_found_twice_is_one_backend(
    install: Install, run: Run, site: Path, tmp_path: Path
) -> None:
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": JAR})
    (tmp_path / "again").symlink_to(site)
    program = """
        sys.path.append("again")
        load_backend("jar")
        print(json.dumps([info.name for info in list_backends()].count("jar")))
    """
    assert run(program) == 1


def test_a_missing_client_is_an_error_with_the_command_that_installs_it(install: Install, run: Run) -> None:
    needing = JAR.replace("api_version=1", "client='jarlib', install='pip install jar-cache[lib]', api_version=1")
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": needing})
    kind, message = open_jar(run)
    assert kind == "MissingClientError"
    assert "'jarlib'" in message
    assert "pip install jar-cache[lib]" in message
    assert load_others(run) == UNHARMED


def test_a_client_that_is_imported_at_the_top_and_missing_is_the_same_error(install: Install, run: Run) -> None:
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": f"import jarlib\n{JAR}"}, version="2.3")
    kind, message = open_jar(run)
    assert kind == "MissingClientError"
    assert "jar-cache 2.3" in message
    assert "'jarlib'" in message
    assert "pip install" in message
    assert load_others(run) == UNHARMED


def test_a_plugin_for_another_version_of_the_contract_is_an_error_with_both(install: Install, run: Run) -> None:
    later = JAR.replace("api_version=1", "api_version=99")
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": later}, version="2.3")
    kind, message = open_jar(run)
    assert kind == "IncompatibleBackendError"
    assert "jar-cache 2.3" in message
    assert "99" in message
    assert "pip install --upgrade jar-cache" in message
    assert load_others(run) == UNHARMED


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param("raise RuntimeError('no\\nlid')", "RuntimeError", id="raises"),
        pytest.param("def broken(:", "SyntaxError", id="does not compile"),
        pytest.param("from claude_force_cache import nothing_of_the_kind", "ImportError", id="imports what is gone"),
        pytest.param("raise SystemExit(3)", "SystemExit", id="ends the program"),
        pytest.param("", "describes no backend", id="empty"),
        pytest.param(JAR.replace("return BackendPlugin(", "raise KeyError("), "TypeError", id="raises when asked"),
        pytest.param(
            JAR.replace("return BackendPlugin(", "return dict("), "describes no backend", id="describes it by a dict"
        ),
    ],
)
def test_a_plugin_that_does_not_load_is_an_error_that_names_its_distribution(
    install: Install, run: Run, source: str, reason: str
) -> None:
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": source}, version="2.3")
    kind, message = open_jar(run)
    assert kind == "IncompatibleBackendError"
    assert "jar-cache 2.3" in message
    assert reason in message
    assert "pip install --upgrade jar-cache" in message
    assert load_others(run) == UNHARMED


def test_an_entry_point_to_a_module_that_is_not_there_is_an_error(install: Install, run: Run) -> None:
    install("jar-cache", {"jar": "jar_backend"}, {}, version="2.3")
    kind, message = open_jar(run)
    assert kind in {"MissingClientError", "IncompatibleBackendError"}
    assert "jar-cache 2.3" in message
    assert "'jar_backend'" in message
    assert load_others(run) == UNHARMED


def test_damaged_metadata_is_an_error_that_names_the_distribution(install: Install, run: Run, site: Path) -> None:
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": JAR}, version="2.3")
    (listed,) = site.glob("jar_cache-*/entry_points.txt")
    listed.write_text("no section\n[claude_force_cache.backends]\nno value\n")
    kind, message = open_jar(run)
    assert kind == "IncompatibleBackendError"
    assert "jar-cache 2.3" in message
    assert "\n" not in message
    assert "pip install --force-reinstall jar-cache" in message


def test_an_unknown_scheme_is_an_error_that_lists_what_is_installed(install: Install, run: Run) -> None:
    install("jar-cache", {"jar": "jar_backend"}, {"jar_backend": JAR})
    kind, message = run("print(json.dumps(attempt(lambda: open_cache('jarr://'))))")
    assert kind == "UnknownBackendError"
    assert "did you mean 'jar'?" in message
    assert all(name in message for name in FIRST_PARTY)
