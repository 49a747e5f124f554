"""The report of a run: JSON for programs, Markdown for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from .bench import Case
from .measuring import Section

__all__ = ["as_markdown", "write"]

NAME = "latest"


def write(folder: Path, run: Mapping[str, Any], sections: Mapping[Case, Section]) -> List[Path]:
    """Write ``latest.json`` and ``latest.md`` into ``folder``, made if need be, and return their paths.

    :param run: when, how and on what it was measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = {**run, "cases": {case.name: {"title": case.title, **_plain(found)} for case, found in sections.items()}}
    data, page = folder / f"{NAME}.json", folder / f"{NAME}.md"
    data.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    page.write_text(as_markdown(run, sections), encoding="utf-8")
    return [data, page]


def _plain(section: Section) -> Dict[str, Any]:
    return {
        "about": section.about,
        "rows": [_rounded(row) for row in section.rows],
        "targets": [asdict(target) for target in section.targets],
        "missing": section.missing,
    }


def _rounded(row: Mapping[str, Any]) -> Dict[str, Any]:
    return {name: round(figure, 4) if isinstance(figure, float) else figure for name, figure in row.items()}


def as_markdown(run: Mapping[str, Any], sections: Mapping[Case, Section]) -> str:
    """Return the whole report."""
    parts = [
        "# Measurements",
        (
            f"A {run['mode']} run of {run['seconds']:.0f} seconds, begun {run['begun']}. "
            "Figures of different runs are not comparable; the ratios are. "
            "What is measured and how: [performance](../../docs/explanation/performance.md)."
        ),
        _machine(run),
        "## Targets",
        _targets(sections),
    ]
    for case, section in sections.items():
        parts += [f"## {case.title}", section.about, _table(section)]
        parts += [f"- {line}" for line in section.missing]
    return "\n\n".join(parts) + "\n"


def _machine(run: Mapping[str, Any]) -> str:
    machine = run["machine"]
    versions = {"Python": machine["python"], **machine["libraries"], **machine["servers"]}
    return "\n".join(
        [
            f"- {machine['processor']}, {machine['cores']} cores, {machine['system']}",
            "- " + ", ".join(f"{name} {version}" for name, version in versions.items()),
            f"- load average of the last minute: {run['load_before']} before, {run['load_after']} after",
        ]
    )


def _targets(sections: Mapping[Case, Section]) -> str:
    rows = [
        [target.text, target.measured, "met" if target.met else "**not met**"]
        for section in sections.values()
        for target in section.targets
    ]
    missing = [[line, "", "**not measured**"] for section in sections.values() for line in section.missing]
    return _grid(["target", "measured", ""], rows + missing)


def _table(section: Section) -> str:
    rows = [
        [row["name"], *(_figure(row.get(column.key), column.digits) for column in section.columns)]
        for row in section.rows
    ]
    return _grid([section.label, *(column.heading for column in section.columns)], rows)


def _figure(figure: object, digits: int) -> str:
    if isinstance(figure, float):
        return f"{figure:,.{digits}f}"
    return f"{figure:,}" if isinstance(figure, int) else str(figure if figure is not None else "")


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in headings[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, rule, *rows])
