"""Prices: what an answer cost, by model and date."""

from __future__ import annotations

import json
import math
import pkgutil
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Mapping, Optional, Sequence, Tuple

from ._answer import Answer

__all__ = ["Price", "PriceList", "Tariff"]

_DATED = re.compile(r"(.+)-\d{8}\Z")


@dataclass(frozen=True)
class Price:
    """USD per million tokens, for prompts up to one length.

    :param max_prompt_tokens: the longest prompt that it is for, or None for any length.
    :param input: for prompt tokens.
    :param output: for tokens of the answer.
    :param cache_write_5m: for prompt tokens written to the API's prompt cache for five minutes.
    :param cache_write_1h: for prompt tokens written to it for an hour.
    :param cache_read: for prompt tokens read from it.
    """

    max_prompt_tokens: Optional[int]
    input: float
    output: float
    cache_write_5m: float
    cache_write_1h: float
    cache_read: float


@dataclass(frozen=True)
class Tariff:
    """The prices of one model from one day on, until a later tariff of the same model.

    :param valid_from: the beginning of that day in UTC, in seconds since 1970.
    :param bands: one price for each length of prompt, the shortest first.
    """

    valid_from: float
    bands: Tuple[Price, ...]


class PriceList:
    """Tariffs by model. A model that is not listed has no price: None, never zero, never another model's.

    A dated id, ``claude-haiku-4-5-20251001``, has the price of its family unless it is listed itself.

    :param source: where the figures come from.
    :param models: the tariffs of each model, in any order.
    """

    def __init__(self, source: str, models: Mapping[str, Sequence[Tariff]]) -> None:
        self.source = source
        self._models = {
            name: tuple(sorted(tariffs, key=lambda tariff: tariff.valid_from, reverse=True))
            for name, tariffs in models.items()
        }

    @classmethod
    def load(cls) -> PriceList:
        """Return the list that comes with the package. Reads a file."""
        data = pkgutil.get_data(__package__, "prices.json")
        if data is None:
            raise FileNotFoundError("prices.json is missing from the package; install it again")
        return cls.parse(json.loads(data))

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> PriceList:
        """Return the list in ``table``, in the format of the package's own ``prices.json``."""
        return cls(
            table["source"],
            {name: [_parse_tariff(entry) for entry in entries] for name, entries in table["models"].items()},
        )

    def price(self, model: str, *, prompt_tokens: int, at: float) -> Optional[Price]:
        """Return the price of ``model`` for a prompt of that length at that time, or None if it is not known.

        :param at: seconds since 1970.
        """
        tariffs = self._models.get(model)
        if tariffs is None:
            dated = _DATED.match(model)
            tariffs = self._models.get(dated.group(1), ()) if dated else ()
        for tariff in tariffs:
            if tariff.valid_from <= at:
                for price in tariff.bands:
                    if price.max_prompt_tokens is None or prompt_tokens <= price.max_prompt_tokens:
                        return price
                return None
        return None

    def cost(self, answer: Answer) -> Optional[float]:
        """Return what ``answer`` cost in USD when it was made, or None if its model's price is not known."""
        price = self.price(answer.model, prompt_tokens=answer.prompt_tokens, at=answer.created)
        if price is None:
            return None
        return (
            answer.input_tokens * price.input
            + answer.output_tokens * price.output
            + answer.cache_read_tokens * price.cache_read
            + answer.cache_write_5m_tokens * price.cache_write_5m
            + answer.cache_write_1h_tokens * price.cache_write_1h
        ) / 1_000_000


def _parse_tariff(entry: Mapping[str, Any]) -> Tariff:
    day = datetime.strptime(entry["valid_from"], "%Y-%m-%d").replace(tzinfo=timezone.utc)
    bands = [
        Price(band.get("max_prompt_tokens"), **{name: float(band[name]) for name in _RATES}) for band in entry["bands"]
    ]
    return Tariff(day.timestamp(), tuple(sorted(bands, key=lambda price: price.max_prompt_tokens or math.inf)))


_RATES = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")
