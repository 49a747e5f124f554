"""Plots of what was measured, beside the tables. matplotlib comes with `make bench` and is needed by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Tuple

__all__ = ["bars", "curves"]

Groups = Mapping[str, Mapping[str, Optional[float]]]
Panels = Mapping[str, Mapping[str, Sequence[Tuple[float, float]]]]

_COLUMNS = 2
_OURS, _OTHERS, _FLOORS = "#1f6f8b", "#b8b8b8", "#dcdcdc"


def bars(path: Path, groups: Groups) -> None:
    """Write a plot with a panel for each group and a bar for each name in it, in microseconds.

    :raises ImportError: if matplotlib is not installed.
    """
    figure, panels = _panels(len(groups), height=2.8)
    for panel, (title, medians) in zip(panels, groups.items()):
        named = sorted(
            ((name, median) for name, median in medians.items() if median is not None), key=lambda it: -it[1]
        )
        colours = [_OURS if name.startswith("ours") else _FLOORS if "floor" in name else _OTHERS for name, _ in named]
        drawn = panel.barh([name for name, _ in named], [median for _, median in named], color=colours)
        panel.bar_label(drawn, fmt="%.3g", padding=2, fontsize=7)
        panel.set_title(f"{title}, us", fontsize=9, loc="left")
        panel.margins(x=0.15)
    _save(figure, path)


def curves(path: Path, panels: Panels, *, across: str) -> None:
    """Write a plot with a panel for each title and a line for each name in it, over a logarithmic axis.

    Several lines share a logarithmic scale.

    :param across: the title of that axis.
    :raises ImportError: if matplotlib is not installed.
    """
    figure, places = _panels(len(panels), height=2.8)
    for panel, (title, lines) in zip(places, panels.items()):
        for name, points in lines.items():
            style = {"color": _OTHERS, "linestyle": "--"} if "floor" in name else {}
            panel.plot(*zip(*points), marker="o", markersize=3, label=name, **style)
        panel.set_xscale("log")
        if len(lines) > 1:
            panel.set_yscale("log")
        else:
            panel.set_ylim(bottom=0)
        panel.set_title(title, fontsize=9, loc="left")
        panel.set_xlabel(across, fontsize=8)
        panel.legend(fontsize=7, frameon=False)
    _save(figure, path)


def _panels(count: int, *, height: float) -> Tuple[Any, Sequence[Any]]:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fixed", "font.family": "sans-serif"})
    rows = -(-count // _COLUMNS)
    figure, grid = pyplot.subplots(rows, _COLUMNS, figsize=(11, height * rows), squeeze=False, layout="constrained")
    places = list(grid.flat)
    for panel in places:
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in places[count:]:
        panel.remove()
    return figure, places


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
