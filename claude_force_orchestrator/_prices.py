"""Prices: what an answer cost, and what a call may cost at most, by model and date."""

from __future__ import annotations

import json
import math
import pkgutil
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar

from ._answer import Answer
from ._errors import ConfigError, ProjectError
from ._project import Project
from ._validation import check_number, check_whole, kind_of

__all__ = ["Price", "PriceList", "Tariff"]

T = TypeVar("T")

_DATED = re.compile(r"(.+)-\d{8}\Z")
_RATES = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")
_MOST_USD = 1_000_000.0
_MOST_TOKENS = 10**9
_LEAST_CACHEABLE = 512
_BATCH_FACTOR = 0.5


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

    :param valid_from: the beginning of that day in UTC, in seconds since 1970; 0.0 for always.
    :param bands: one price for each length of prompt, the shortest first.
    :param source: where the figures come from.
    """

    valid_from: float
    bands: Tuple[Price, ...]
    source: str = ""


class PriceList:
    """Tariffs by model. A model that is not listed has no price: None, never zero, never another model's.

    A dated id, ``claude-haiku-4-5-20251001``, has the price of its family unless it is listed itself. Which tariff
    holds is decided by the time of the call.

    :param models: the tariffs of each model, in any order.
    :param least_cacheable: the shortest prefix in tokens that the API's prompt cache takes, by model.
    :param batch_factor: by what the prices are multiplied for answers of the API for batches.
    """

    def __init__(
        self,
        models: Mapping[str, Sequence[Tariff]],
        *,
        least_cacheable: Mapping[str, int] = MappingProxyType({}),
        batch_factor: float = _BATCH_FACTOR,
    ) -> None:
        self.models: Mapping[str, Tuple[Tariff, ...]] = MappingProxyType(
            {
                name: tuple(sorted(tariffs, key=lambda tariff: tariff.valid_from, reverse=True))
                for name, tariffs in models.items()
            }
        )
        self.batch_factor = batch_factor
        self._least_cacheable = dict(least_cacheable)

    @classmethod
    def load(cls) -> PriceList:
        """Return the list that comes with the package. Reads a file."""
        data = pkgutil.get_data(__package__, "prices.json")
        if data is None:
            raise FileNotFoundError("prices.json is missing from the package; install it again")
        return cls.parse(json.loads(data))

    @classmethod
    def parse(cls, table: object, *, where: str = "the price list") -> PriceList:
        """Return the list in ``table``, in the format of the package's own ``prices.json``.

        :param where: what the table is called in errors.
        :raises ConfigError: if it is not in that format.
        """
        if not isinstance(table, dict):
            raise ConfigError(f"{where} must be an object with 'models', not {kind_of(table)}")
        unknown = sorted(table.keys() - {"source", "unit", "batch_factor", "least_cacheable_tokens", "models"})
        if unknown:
            raise ConfigError(f"{where} has keys without meaning: {', '.join(unknown)}")
        source, models = table.get("source", where), table.get("models")
        lengths = table.get("least_cacheable_tokens", {})
        if not isinstance(source, str):
            raise ConfigError(f"{where}: 'source' must be text, not {kind_of(source)}")
        if table.get("unit", _UNIT) != _UNIT:
            raise ConfigError(f"{where}: 'unit' can only be {_UNIT!r}")
        if not isinstance(models, dict):
            raise ConfigError(f"{where}: 'models' must be an object of lists by model, not {kind_of(models)}")
        if not isinstance(lengths, dict):
            raise ConfigError(f"{where}: 'least_cacheable_tokens' must be an object, not {kind_of(lengths)}")
        factor = table.get("batch_factor", _BATCH_FACTOR)
        return cls(
            {name: _parse_tariffs(tariffs, source, f"{where}: model {name!r}") for name, tariffs in models.items()},
            least_cacheable={
                name: check_whole(f"{where}: least_cacheable_tokens of {name!r}", tokens, least=1, most=_MOST_TOKENS)
                for name, tokens in lengths.items()
            },
            batch_factor=check_number(f"{where}: batch_factor", factor, least=0, most=1),
        )

    @classmethod
    def of_project(cls, project: Project) -> PriceList:
        """Return the package's list under what a project says in the section ``prices`` of claude.json. Reads files.

        :raises ProjectError: if that is neither a list nor the path of a file with one.
        """
        given, where = project.prices, f"{project.path}: prices"
        if given is None:
            return cls.load()
        try:
            if isinstance(given, str):
                where = str(project.folder / given)
                given = json.loads((project.folder / given).read_text(encoding="utf-8-sig"))
            return cls.parse(given, where=where).over(cls.load())
        except ConfigError as error:
            raise ProjectError(str(error)) from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ProjectError(f"{project.path}: prices names {where!r}, which cannot be read: {reason}") from None
        except (ValueError, RecursionError):
            raise ProjectError(f"{where!r} is not valid JSON; see the format in the settings' reference") from None

    def over(self, other: PriceList) -> PriceList:
        """Return this list with what only ``other`` has. A model that both have is as it is here."""
        return PriceList(
            {**other.models, **self.models},
            least_cacheable={**other._least_cacheable, **self._least_cacheable},
            batch_factor=self.batch_factor,
        )

    def tariffs(self, model: str) -> Tuple[Tariff, ...]:
        """Return the tariffs of a model, the latest first; none if its price is not known."""
        return _of_family(self.models, model) or ()

    def price(self, model: str, *, prompt_tokens: int, at: float) -> Optional[Price]:
        """Return the price of ``model`` for a prompt of that length at that time, or None if it is not known.

        :param at: seconds since 1970.
        """
        for price in self._bands(model, at):
            if price.max_prompt_tokens is None or prompt_tokens <= price.max_prompt_tokens:
                return price
        return None

    def cost(self, answer: Answer, *, batch: bool = False) -> Optional[float]:
        """Return what ``answer`` cost in USD when it was made, or None if its model's price is not known.

        :param batch: whether it came through the API for batches, which costs :attr:`batch_factor` times the price.
        """
        price = self.price(answer.model, prompt_tokens=answer.prompt_tokens, at=answer.created)
        if price is None:
            return None
        usd = (
            answer.input_tokens * price.input
            + answer.output_tokens * price.output
            + answer.cache_read_tokens * price.cache_read
            + answer.cache_write_5m_tokens * price.cache_write_5m
            + answer.cache_write_1h_tokens * price.cache_write_1h
        ) / 1_000_000
        return usd * self.batch_factor if batch else usd

    def prompt_cache_saved(self, answer: Answer, *, batch: bool = False) -> Optional[float]:
        """Return by how many USD the API's prompt cache made ``answer`` cheaper, or None if that is not known.

        Below zero for an answer that only wrote to it.

        :param batch: as for :meth:`cost`.
        """
        price = self.price(answer.model, prompt_tokens=answer.prompt_tokens, at=answer.created)
        if price is None:
            return None
        usd = (
            answer.cache_read_tokens * (price.input - price.cache_read)
            + answer.cache_write_5m_tokens * (price.input - price.cache_write_5m)
            + answer.cache_write_1h_tokens * (price.input - price.cache_write_1h)
        ) / 1_000_000
        return usd * self.batch_factor if batch else usd

    def most(
        self, model: str, *, prompt_tokens: int, max_tokens: int, at: float, batch: bool = False
    ) -> Optional[float]:
        """Return what a call can cost at most in USD, or None if the model's price is not known.

        :param prompt_tokens: a bound of the prompt's length. Any of it may be written to the prompt cache for five
            minutes.
        :param max_tokens: the limit of the answer.
        :param at: seconds since 1970.
        :param batch: as for :meth:`cost`.
        """
        bands, shorter, usd = self._bands(model, at), 0, 0.0
        if not bands or (bands[-1].max_prompt_tokens or prompt_tokens) < prompt_tokens:
            return None
        for price in bands:
            if prompt_tokens < shorter:
                break
            tokens = min(prompt_tokens, price.max_prompt_tokens or prompt_tokens)
            rate = max(price.input, price.cache_write_5m, price.cache_read)
            usd = max(usd, (tokens * rate + max_tokens * price.output) / 1_000_000)
            shorter = tokens + 1
        return usd * self.batch_factor if batch else usd

    def least_cacheable(self, model: str) -> int:
        """Return the shortest prefix in tokens that the API's prompt cache takes.

        For a model that is not listed, the shortest of any: to try costs nothing.
        """
        return _of_family(self._least_cacheable, model) or _LEAST_CACHEABLE

    def _bands(self, model: str, at: float) -> Tuple[Price, ...]:
        return next((tariff.bands for tariff in self.tariffs(model) if tariff.valid_from <= at), ())


def _of_family(table: Mapping[str, T], model: str) -> Optional[T]:
    """Return what is listed of a model, or else of the family that its dated id names."""
    found = table.get(model)
    dated = _DATED.match(model) if found is None else None
    return table.get(dated.group(1)) if dated else found


def _parse_tariffs(tariffs: object, source: str, where: str) -> List[Tariff]:
    if not isinstance(tariffs, list) or not tariffs:
        raise ConfigError(f"{where} must be a list of tariffs, not {kind_of(tariffs)}")
    return [_parse_tariff(tariff, source, where) for tariff in tariffs]


def _parse_tariff(tariff: object, source: str, where: str) -> Tariff:
    if not isinstance(tariff, dict):
        raise ConfigError(f"{where}: a tariff must be an object, not {kind_of(tariff)}")
    rest: Dict[str, Any] = dict(tariff)
    day, own = rest.pop("valid_from", None), rest.pop("source", source)
    bands = rest.pop("bands", None)
    if not isinstance(own, str):
        raise ConfigError(f"{where}: 'source' must be text, not {kind_of(own)}")
    if bands is None:
        bands = [rest]
    elif rest:
        raise ConfigError(f"{where}: beside 'bands' there is no {', '.join(sorted(rest))}")
    if not isinstance(bands, list) or not bands:
        raise ConfigError(f"{where}: 'bands' must be a list of prices, not {kind_of(bands)}")
    prices = sorted(
        (_parse_price(band, where) for band in bands), key=lambda price: price.max_prompt_tokens or math.inf
    )
    if len({price.max_prompt_tokens for price in prices}) < len(prices):
        raise ConfigError(f"{where}: two bands have the same max_prompt_tokens")
    return Tariff(_parse_day(day, where), tuple(prices), own)


def _parse_day(day: object, where: str) -> float:
    if day is None:
        return 0.0
    try:
        if isinstance(day, str):
            return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        pass
    raise ConfigError(f"{where}: 'valid_from' must be a day such as 2026-11-01")


def _parse_price(band: object, where: str) -> Price:
    if not isinstance(band, dict):
        raise ConfigError(f"{where}: a price must be an object, not {kind_of(band)}")
    unknown = sorted(band.keys() - {"max_prompt_tokens", *_RATES})
    missing = [name for name in _RATES if name not in band]
    if unknown:
        raise ConfigError(f"{where} has keys without meaning: {', '.join(unknown)}")
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}: give USD per million tokens")
    limit = band.get("max_prompt_tokens")
    if limit is not None:
        check_whole(f"{where}: max_prompt_tokens", limit, least=1, most=_MOST_TOKENS)
    rates = {name: check_number(f"{where}: {name}", band[name], least=0, most=_MOST_USD) for name in _RATES}
    return Price(limit, **rates)


_UNIT = "USD per million tokens"
