"""Prices: per model, dated, by length of prompt; unknown is unknown."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_orchestrator import Answer, PriceList, Project, ProjectError

NOW = datetime(2026, 11, 20, tzinfo=timezone.utc).timestamp()
RATES = {"input": 1, "output": 2, "cache_write_5m": 1.25, "cache_write_1h": 2, "cache_read": 0.1}


def _answer(model: str, **fields: Any) -> Answer:
    table: Dict[str, Any] = {"input_tokens": 0, "output_tokens": 0, "created": NOW, **fields}
    return Answer("x", model, "end_turn", **table)


@pytest.mark.parametrize(
    ("model", "rates"),
    [
        ("claude-opus-5-5", (4, 20, 5, 8, 0.20)),
        *[(f"claude-opus-{version}", (5, 25, 6.25, 10, 0.50)) for version in ("5", "4-8", "4-7", "4-6", "4-5")],
        *[(f"claude-sonnet-{version}", (2, 10, 2.5, 4, 0.20)) for version in ("5-5", "5")],
        *[(f"claude-sonnet-{version}", (3, 15, 3.75, 6, 0.30)) for version in ("4-6", "4-5")],
        ("claude-haiku-4-5", (1, 5, 1.25, 2, 0.10)),
        ("claude-fable-5-2", (8, 40, 10, 16, 0.20)),
        *[(f"claude-{name}-5-1", (10, 50, 12.5, 20, 0.25)) for name in ("fable", "mythos")],
    ],
)
def test_a_million_tokens_of_each_kind_cost_what_the_list_says(model: str, rates: Any) -> None:
    kinds = (
        "input_tokens",
        "output_tokens",
        "cache_write_5m_tokens",
        "cache_write_1h_tokens",
        "cache_read_tokens",
    )
    prices = PriceList.load()
    for kind, rate in zip(kinds, rates):
        assert prices.cost(_answer(model, **{kind: 1_000_000})) == pytest.approx(rate)


def test_a_long_prompt_has_the_price_of_long_prompts() -> None:
    prices = PriceList.load()
    short = _answer("claude-haiku-5-5", input_tokens=100_000, output_tokens=1000)
    long = _answer("claude-haiku-5-5", input_tokens=50_000, cache_read_tokens=50_001, output_tokens=1000)
    assert prices.cost(short) == pytest.approx((100_000 * 0.10 + 1000 * 0.50) / 1e6)
    assert prices.cost(long) == pytest.approx((50_000 * 0.50 + 50_001 * 0.05 + 1000 * 2.50) / 1e6)


@pytest.mark.parametrize(
    "model",
    [
        "claude-haiku-9",
        "claude-haiku-4-5-latest",
        "claude-haiku-4-5-2025100",
        "claude-haiku-4-5-202510011",
        "claude-haiku-4-5-20251001\n",
        "claude-haiku-4-5-20251001-20251001",
        "claude-opus",
        "haiku-4-5",
        "",
        "gpt-4",
    ],
)
def test_an_unknown_model_has_no_price(model: str) -> None:
    assert PriceList.load().cost(_answer(model, input_tokens=1)) is None


def test_a_dated_model_has_the_price_of_its_family() -> None:
    assert PriceList.load().cost(_answer("claude-haiku-4-5-20251001", input_tokens=1_000_000)) == pytest.approx(1)


def test_a_price_holds_from_its_day_until_the_next() -> None:
    rates = {"output": 1, "cache_write_5m": 1, "cache_write_1h": 1, "cache_read": 1}
    prices = PriceList.parse(
        {
            "source": "a test",
            "models": {
                "m": [
                    {"valid_from": "2026-02-01", "bands": [{"max_prompt_tokens": 2_000_000, "input": 2, **rates}]},
                    {"valid_from": "2026-01-01", "bands": [{"input": 1, **rates}]},
                ]
            },
        }
    )

    def cost(month: int, day: int, tokens: int = 1_000_000) -> Any:
        at = datetime(2026, month, day, tzinfo=timezone.utc).timestamp()
        return prices.cost(_answer("m", input_tokens=tokens, created=at))

    assert prices.cost(_answer("m", created=datetime(2025, 12, 31, 23, 59, tzinfo=timezone.utc).timestamp())) is None
    assert [cost(1, 1), cost(1, 31), cost(2, 1), cost(12, 1)] == [1, 1, 2, 2]
    assert cost(3, 1, 2_000_001) is None  # no band of the tariff in force; not the price of an older one


def test_the_list_says_where_it_is_from() -> None:
    assert {tariff.source for tariffs in PriceList.load().models.values() for tariff in tariffs} == {
        "Anthropic price list, November 2026"
    }


@pytest.mark.parametrize("batch", [False, True])
def test_an_answer_of_a_batch_costs_half(batch: bool) -> None:
    answer = _answer("claude-haiku-4-5", input_tokens=1_000_000, cache_read_tokens=1_000_000)
    assert PriceList.load().cost(answer, batch=batch) == pytest.approx(1.1 / (1 + batch))
    assert PriceList.load().prompt_cache_saved(answer, batch=batch) == pytest.approx(0.9 / (1 + batch))


def test_what_the_prompt_cache_saved_is_the_difference_to_ordinary_tokens() -> None:
    prices = PriceList.load()
    assert prices.prompt_cache_saved(_answer("claude-haiku-4-5", input_tokens=9)) == 0
    written = _answer("claude-haiku-4-5", cache_write_5m_tokens=1_000_000)
    assert prices.prompt_cache_saved(written) == pytest.approx(-0.25)
    assert prices.prompt_cache_saved(_answer("gpt-4")) is None


_tokens = st.integers(0, 300_000)
_answers = st.builds(
    _answer,
    st.sampled_from(sorted(PriceList.load().models)),
    input_tokens=_tokens,
    cache_read_tokens=_tokens,
    cache_write_5m_tokens=_tokens,
    output_tokens=_tokens,
)


@given(answer=_answers, more=st.integers(0, 50_000), batch=st.booleans())
def test_no_call_costs_more_than_its_most(answer: Answer, more: int, batch: bool) -> None:
    prices = PriceList.load()
    prompt, limit = answer.prompt_tokens + more, answer.output_tokens + more
    most = prices.most(answer.model, prompt_tokens=prompt, max_tokens=limit, at=NOW, batch=batch)
    cost = prices.cost(answer, batch=batch)
    assert most is not None
    assert cost is not None
    assert cost <= most * (1 + 1e-12)


def test_the_most_of_a_call_is_known_only_if_all_prices_are_that_it_may_have() -> None:
    prices = PriceList.parse({"models": {"m": [{"bands": [{"max_prompt_tokens": 100, **RATES}]}]}})
    assert prices.most("m", prompt_tokens=100, max_tokens=1, at=NOW) is not None
    assert prices.most("m", prompt_tokens=101, max_tokens=1, at=NOW) is None
    assert prices.most("other", prompt_tokens=1, max_tokens=1, at=NOW) is None


def test_what_no_prompt_cache_takes_is_known_by_model_and_family() -> None:
    lengths = map(PriceList.load().least_cacheable, ("claude-opus-5", "claude-sonnet-4-5-20250929", "a-new-model"))
    assert list(lengths) == [512, 1024, 512]


def test_a_project_adds_prices_and_overrides_them(edit: Any, config: Path) -> None:
    edit(prices={"source": "ours", "models": {"our-model": [RATES], "claude-haiku-5-5": [RATES]}})
    prices = PriceList.of_project(Project.load(config))
    assert [prices.tariffs(name)[0].source for name in ("our-model", "claude-haiku-5-5")] == ["ours", "ours"]
    assert prices.tariffs("claude-opus-5-5") == PriceList.load().tariffs("claude-opus-5-5")
    assert prices.cost(_answer("our-model", input_tokens=1_000_000, created=1.0)) == 1
    assert prices.least_cacheable("claude-opus-5") == 512


def test_a_projects_prices_may_stand_in_a_file(edit: Any, config: Path, run: Any) -> None:
    (config.parent / "ours.json").write_text(json.dumps({"models": {"claude-haiku-5-5": [RATES]}}), encoding="utf-8")
    edit(prices="ours.json")
    result = run(lambda it: it.execute_agent("code-reviewer", "x"))
    assert result.metadata.estimated_cost == pytest.approx((1000 * 1 + 200 * 2) / 1e6)


def test_a_projects_file_of_prices_that_cannot_be_read_is_named(edit: Any, config: Path) -> None:
    edit(prices="missing.json")
    with pytest.raises(ProjectError, match=r"missing\.json.*cannot be read"):
        PriceList.of_project(Project.load(config))
    (config.parent / "missing.json").write_text("{", encoding="utf-8")
    with pytest.raises(ProjectError, match="not valid JSON"):
        PriceList.of_project(Project.load(config))


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (7, "must be an object"),
        ({}, "'models' must be an object"),
        ({"models": {}, "prices": {}}, "without meaning: prices"),
        ({"models": {}, "source": 1}, "'source' must be text"),
        ({"models": {}, "unit": "EUR"}, "'unit' can only be"),
        ({"models": {}, "batch_factor": 2}, "batch_factor must be a number"),
        ({"models": {}, "least_cacheable_tokens": 1}, "must be an object"),
        ({"models": {}, "least_cacheable_tokens": {"m": 0}}, "must be a whole number"),
        ({"models": {"m": []}}, "'m' must be a list of tariffs"),
        ({"models": {"m": [1]}}, "a tariff must be an object"),
        ({"models": {"m": [{}]}}, "lacks input, output, cache_write_5m, cache_write_1h, cache_read"),
        ({"models": {"m": [{**RATES, "inputs": 1}]}}, "without meaning: inputs"),
        ({"models": {"m": [{**RATES, "input": -1}]}}, "input must be a number"),
        ({"models": {"m": [{**RATES, "input": True}]}}, "input must be a number"),
        ({"models": {"m": [{**RATES, "source": 1}]}}, "'source' must be text"),
        ({"models": {"m": [{**RATES, "valid_from": "soon"}]}}, "must be a day such as"),
        ({"models": {"m": [{"bands": [], "valid_from": "2026-01-01"}]}}, "must be a list of prices"),
        ({"models": {"m": [{"bands": [1]}]}}, "a price must be an object"),
        ({"models": {"m": [{"bands": [RATES], "input": 1}]}}, "beside 'bands' there is no input"),
        ({"models": {"m": [{"bands": [RATES, RATES]}]}}, "the same max_prompt_tokens"),
        ({"models": {"m": [{"bands": [{**RATES, "max_prompt_tokens": 0}]}]}}, "must be a whole number"),
    ],
)
def test_prices_that_cannot_be_used_are_named(table: Any, complaint: str, edit: Any, config: Path) -> None:
    edit(prices=table)
    with pytest.raises(ProjectError, match=complaint):
        PriceList.of_project(Project.load(config))


def test_an_unknown_price_is_none_and_is_counted(run: Any, api: Any) -> None:
    api.default = api.reply(api.message(model="a-new-model"))

    async def ask(it: Any) -> Any:
        paid = await it.execute_agent("code-reviewer", "x")
        hit = await it.execute_agent("code-reviewer", "x")
        return paid.metadata, hit.metadata, it.totals

    paid, hit, totals = run(ask)
    assert (paid.estimated_cost, paid.saved_cost) == (None, 0.0)
    assert (hit.estimated_cost, hit.saved_cost) == (0.0, None)
    assert (totals.usd_spent, totals.usd_saved, totals.unknown_cost) == (0.0, 0.0, 2)


def test_the_apis_own_prompt_cache_is_priced(run: Any, api: Any) -> None:
    usage = {
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_read_input_tokens": 1000,
        "cache_creation_input_tokens": 500,
        "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 300},
    }
    api.default = api.reply(api.message(model="claude-sonnet-5", usage=usage))
    result = run(lambda it: it.execute_agent("code-reviewer", "x"))
    assert result.metadata.input_tokens == 1510
    assert result.metadata.estimated_cost == pytest.approx((10 * 2 + 20 * 10 + 1000 * 0.20 + 200 * 2.5 + 300 * 4) / 1e6)
