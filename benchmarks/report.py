"""The report of a run: JSON for programs, Markdown for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from .bench import Case
from .measuring import Section
from .targets import LINES, Target

__all__ = ["as_markdown", "write"]

Sections = Mapping[Case, Section]


def write(folder: Path, name: str, run: Mapping[str, Any], sections: Sections) -> List[Path]:
    """Write ``<name>.json`` and ``<name>.md`` into ``folder``, made if need be, and return their paths.

    :param run: when, how and on what it was measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = {
        **run,
        "targets": [_judged(name, found) for name, found in _by_line(sections).items()],
        "cases": {case.name: {"title": case.title, **_plain(found)} for case, found in sections.items()},
    }
    data, page = folder / f"{name}.json", folder / f"{name}.md"
    data.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    page.write_text(as_markdown(run, sections), encoding="utf-8")
    return [data, page]


def _judged(line: str, found: Sequence[Target]) -> Dict[str, Any]:
    parts = [
        {
            "what": target.what,
            "figure": round(target.figure, 4),
            "limit": target.limit,
            "least": target.least,
            "unit": target.unit,
            "met": target.met,
            "note": target.note,
        }
        for target in found
    ]
    return {"line": line, "text": LINES[line], "met": all(target.met for target in found), "parts": parts}


def _plain(section: Section) -> Dict[str, Any]:
    return {
        "about": section.about,
        "rows": [_rounded(row) for row in section.rows],
        "missing": section.missing,
        "plots": section.plots,
    }


def _rounded(row: Mapping[str, Any]) -> Dict[str, Any]:
    return {name: round(figure, 4) if isinstance(figure, float) else figure for name, figure in row.items()}


def as_markdown(run: Mapping[str, Any], sections: Sections) -> str:
    """Return the whole report."""
    parts = [
        "# Measurements",
        (
            f"A {run['mode']} run of {run['seconds']:.0f} seconds, begun {run['begun']}. "
            "Figures of different runs are not comparable; the ratios are. "
            "What is measured and how: [performance](../../docs/explanation/performance.md)."
        ),
        _machine(run),
    ]
    if run["failed"]:
        parts.append("Cases that failed: " + "; ".join(run["failed"]) + ".")
    judged = _by_line(sections)
    if judged:
        parts += ["## Targets", _targets(judged), "### Each figure", _figures(judged)]
    for case, section in sections.items():
        parts += [f"## {case.title}", section.about]
        parts += [f"![{caption}]({file})" for file, caption in section.plots.items()]
        parts.append(_table(section))
        if section.missing:
            parts.append("\n".join(f"- {line}" for line in section.missing))
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


def _by_line(sections: Sections) -> Dict[str, List[Target]]:
    found = [target for section in sections.values() for target in section.targets]
    lines = {line: [target for target in found if target.line == line] for line in LINES}
    return {line: targets for line, targets in lines.items() if targets}


def _targets(judged: Mapping[str, Sequence[Target]]) -> str:
    rows = []
    for line, targets in judged.items():
        missed = [target for target in targets if not target.met]
        worst = max(targets, key=lambda target: target.share)
        verdict = f"**NOT met** in {len(missed)} of {len(targets)}" if missed else "met"
        rows.append([f"**{line}**: {LINES[line]}", f"{worst.what}: {worst.measured}", verdict])
    rows += [[f"**{line}**: {LINES[line]}", "", "not measured"] for line in LINES if line not in judged]
    return _grid(["target", "the figure nearest to its limit, or furthest above it", "verdict"], rows, right=False)


def _figures(judged: Mapping[str, Sequence[Target]]) -> str:
    rows = [
        [target.line, target.what, target.measured, "met" if target.met else "**NOT met**"]
        for targets in judged.values()
        for target in targets
    ]
    return _grid(["line", "what", "measured", "verdict"], rows, right=False)


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


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    rule = ["---", *("---:" if right else "---" for _ in headings[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, rule, *rows])
