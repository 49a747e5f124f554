"""The hot paths take no more instructions than ``benchmarks/budgets.json`` allows, on this version of Python."""

from __future__ import annotations

import json

from benchmarks.budgets import BUDGETS, compare, count, version


def test_the_hot_paths_keep_to_their_budgets() -> None:
    above = compare(count(), json.loads(BUDGETS.read_text(encoding="utf-8")).get(version(), {}))
    assert not above, (
        "\n".join(["", *above])
        + "\nIf that is what the change is meant to cost, write new budgets with `make budgets` and say in the commit "
        "what for; else find what is done in vain."
    )


def test_what_is_above_its_budget_without_one_or_gone_is_named_with_its_figures() -> None:
    counts, budgets = {"hit": 110, "store": 50, "new": 7}, {"hit": 100, "store": 50, "old": 9}
    hit, new, old = compare(counts, budgets)
    assert hit == "hit: takes 110 instructions, 10 (10.0 %) above its budget 100"
    assert "new: takes 7" in new
    assert "old: has a budget of 9" in old
    assert compare({"hit": 90}, {"hit": 100}) == []
