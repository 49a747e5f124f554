"""``claude-force backends``: everything that is installed, whatever state it is in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

PLUGIN = """
from claude_force_cache import BackendPlugin, Capabilities, Option, hookimpl

@hookimpl
def claude_force_cache_backend():
    return BackendPlugin(
        create=lambda settings: None,
        url="NAME://host",
        summary="a store of somebody else's",
        capabilities=Capabilities(persistent=False),
        options=(Option("password", str, None, "how to get in", secret=True),),
        EXTRA,
    )
"""


@pytest.fixture
def install(tmp_path: Path, lonely_cli: Any) -> Callable[..., None]:
    """Make a distribution with one backend, as an installer would leave it, for new interpreters."""
    site = tmp_path / "site"
    site.mkdir()
    lonely_cli.environment["PYTHONPATH"] = str(site)

    def make(distribution: str, backend: str, *, extra: str = "api_version=1", source: str = PLUGIN) -> None:
        module = distribution.replace("-", "_")
        (site / f"{module}.py").write_text(source.replace("NAME", backend).replace("EXTRA", extra))
        info = site / f"{module}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2.3\n")
        (info / "entry_points.txt").write_text(f"[claude_force_cache.backends]\n{backend} = {module}\n")
        (info / "RECORD").write_text("")

    return make


def listed(cli: Any) -> Dict[str, List[Dict[str, Any]]]:
    done = cli.process("backends", "--json")
    assert (done.code, done.err) == (0, "")
    rows: Dict[str, List[Dict[str, Any]]] = {}
    for row in done.json:
        rows.setdefault(row["name"], []).append(row)
    return rows


def test_first_and_third_parties_are_listed_alike(lonely_cli: Any, install: Any) -> None:
    install("acme-cache", "acme")
    rows = listed(lonely_cli)
    assert list(rows) == sorted(["acme", "disk", "memcached", "memory", "redis"])
    for name in ("disk", "memcached", "memory", "redis"):
        (row,) = rows[name]
        assert row["error"] is None
        assert row["distribution"] == "claude-force-cache"
        assert row["url"].startswith(f"{name}://")
        assert row["client_installed"] is True
        assert row["summary"]
        assert set(row["capabilities"]) >= {"persistent", "max_value_bytes", "shared_between_machines"}
    assert {name: row[0]["client"] for name, row in rows.items()} == {
        "acme": None,
        "disk": "diskcache",
        "memcached": "pymemcache",
        "memory": None,
        "redis": "redis",
    }
    (acme,) = rows["acme"]
    assert (acme["distribution"], acme["version"], acme["url"]) == ("acme-cache", "1.2.3", "acme://host")
    assert acme["weaknesses"] == {"persistent": False}
    assert acme["options"] == [
        {"name": "password", "default": None, "help": "how to get in", "minimum": None, "maximum": None, "secret": True}
    ]
    table = lonely_cli.process("backends").out
    assert all(name in table for name in rows)


def test_each_failure_stands_in_its_own_row(lonely_cli: Any, install: Any) -> None:
    install("acme-cache", "acme")
    install("other-cache", "acme")
    install("broken-cache", "broken", source="raise RuntimeError('boom\\nand bang')")
    install("needy-cache", "needy", source="import a_library_that_is_not_there")
    install("old-cache", "old", extra="api_version=0")
    install(
        "lazy-cache", "lazy", extra="api_version=1, client='another_missing_library', install='pip install another'"
    )
    install("disk-thief", "disk")
    rows = listed(lonely_cli)
    assert [row["distribution"] for row in rows["acme"]] == ["acme-cache", "other-cache"]
    for row in rows["acme"]:
        assert "acme-cache 1.2.3 and other-cache 1.2.3" in row["error"]
        assert "pip uninstall" in row["error"]
    assert "boom and bang" in rows["broken"][0]["error"]
    assert "a_library_that_is_not_there" in rows["needy"][0]["error"]
    assert "API version 0" in rows["old"][0]["error"]
    assert rows["lazy"][0]["error"] is None
    assert (rows["lazy"][0]["client_installed"], rows["lazy"][0]["install"]) == (False, "pip install another")
    assert len(rows["disk"]) == 2
    for name in ("memory", "redis", "memcached"):
        assert rows[name][0]["error"] is None

    for name, words in (
        ("acme", ["acme-cache 1.2.3 and other-cache 1.2.3", "pip uninstall"]),
        ("broken", ["broken-cache", "boom and bang"]),
        ("needy", ["a_library_that_is_not_there"]),
        ("old", ["API version 0"]),
        ("lazy", ["another_missing_library", "pip install another"]),
    ):
        lonely_cli.process("cache", "stats", "--cache", f"{name}://").assert_refused(*words)
    assert lonely_cli.process("cache", "stats", "--cache", "memory://").code == 0


def test_listing_imports_no_client_library() -> None:
    code = (
        "import sys\n"
        "from claude_force_orchestrator.cli import main\n"
        "try:\n"
        "    main(['backends', '--json'])\n"
        "finally:\n"
        "    imported = {'redis', 'pymemcache', 'diskcache', 'anthropic', 'llmock'} & set(sys.modules)\n"
        "    sys.stderr.write(','.join(imported))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
