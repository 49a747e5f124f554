"""``claude-force backends``: what is installed, and why something is not usable."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
from typing import TYPE_CHECKING, Dict, List

from ._console import print_json, print_table
from ._options import JSONOption

if TYPE_CHECKING:
    from claude_force_cache import BackendInfo, BackendPlugin, Option

__all__ = ["backends"]


def backends(as_json: JSONOption = False) -> None:
    """List every installed cache backend, first and third party alike."""
    from claude_force_cache import list_backends

    rows = [_describe(info) for info in list_backends()]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("backend", "distribution", "URL", "client", "what it is"),
        [
            (
                str(row["name"]),
                f"{row['distribution']} {row['version']}",
                str(row.get("url", "-")),
                _client_text(row),
                str(row["error"] or _summary(row)),
            )
            for row in rows
        ],
    )


def _describe(info: "BackendInfo") -> Dict[str, object]:
    from claude_force_cache import ConfigurationError, load_backend

    row: Dict[str, object] = {
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "error": None,
    }
    try:
        plugin = load_backend(info.name)
    except ConfigurationError as error:
        row["error"] = str(error)
        return row
    row.update(_plugin_row(plugin))
    return row


def _plugin_row(plugin: "BackendPlugin") -> Dict[str, object]:
    from dataclasses import asdict

    return {
        "url": plugin.url,
        "summary": plugin.summary,
        "client": plugin.client,
        "client_installed": plugin.client_installed,
        "install": plugin.install,
        "capabilities": asdict(plugin.capabilities),
        "weaknesses": _weaknesses(plugin),
        "options": [_option_row(option) for option in plugin.options],
    }


def _option_row(option: "Option") -> Dict[str, object]:
    default = option.default
    return {
        "name": option.name,
        "default": default if default is None or isinstance(default, (bool, int, float, str)) else str(default),
        "help": option.help,
        "minimum": option.minimum,
        "maximum": option.maximum,
        "secret": option.secret,
    }


def _weaknesses(plugin: "BackendPlugin") -> Dict[str, object]:
    """Return the capabilities in which the backend falls short of the whole contract."""
    from dataclasses import asdict

    from claude_force_cache import Capabilities

    whole = asdict(Capabilities())
    return {name: value for name, value in asdict(plugin.capabilities).items() if value != whole[name]}


def _summary(row: Dict[str, object]) -> str:
    lines: List[str] = [str(row["summary"])]
    weaknesses, options = row["weaknesses"], row["options"]
    if isinstance(weaknesses, dict) and weaknesses:
        lines.append("limits: " + ", ".join(f"{name}={value}" for name, value in weaknesses.items()))
    if isinstance(options, list) and options:
        lines.append("options: " + ", ".join(option["name"] for option in options))
    return "\n".join(lines)


def _client_text(row: Dict[str, object]) -> str:
    if "client" not in row:
        return "?"
    if row["client"] is None:
        return "none needed"
    if row["client_installed"]:
        return f"{row['client']}"
    return f"missing: {row['install'] or 'pip install ' + str(row['client'])}"
