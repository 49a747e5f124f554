"""The script of the figures at scale: it runs, its simulation hits where a real store does, and what must hold does."""

import asyncio
import random
from pathlib import Path
from typing import Any, List

import pytest

from claude_force_backends.redis import RedisBackend
from claude_force_cache import BackendSettings, BackendURL
from reliability import scale_measure as measure
from reliability import scale_traffic as traffic
from reliability.scale import main
from reliability.scale_traffic import Evicting, Traffic


def small(seed: int = 1, exponent: float = 1.0) -> Traffic:
    return Traffic(2000, 20_000, exponent, seed)


def test_the_same_seed_gives_the_same_traffic_and_the_most_popular_come_first() -> None:
    one, same, other = small(), small(), small(seed=2)
    assert (one.names, one.sizes, one.asked) == (same.names, same.sizes, same.asked)
    assert one.names[0] != other.names[0]
    assert one.asked.count(0) > one.asked.count(9) > one.asked.count(99)


@pytest.mark.parametrize("count", [1, 4])
def test_the_simulation_hits_at_the_look_ups_at_which_a_real_redis_does(
    redis_server: Any, namespace: str, count: int
) -> None:
    asked = Traffic(200, 1500, 1.0, seed=3)
    limit = asked.bytes // 8
    stores = [Evicting(limit // count) for _ in range(count)]
    places = traffic.partitions(asked.names, count)
    expected = [stores[places[key]].ask(key, asked.sizes[key], number) for number, key in enumerate(asked.asked)]
    assert 100 < sum(expected) < 1400

    async def play() -> List[bool]:
        url, _ = BackendURL.parse(redis_server.url)
        backend = RedisBackend(BackendSettings(url, "scale", limit, None, {"partitions": count}))
        # The same placement as the simulation's: its namespace is part of no key's partition.
        backend._namespace = namespace
        backend._lay_out(count)
        await backend.open()
        hits = []
        try:
            for key in asked.asked:
                found = await backend.get(asked.names[key]) is not None
                hits.append(found)
                if not found and asked.sizes[key] <= limit // count:
                    await backend.set(asked.names[key], bytes(asked.sizes[key] - len(asked.names[key])), ttl=None)
            assert (await backend.usage()).bytes == sum(store.bytes for store in stores)
            await backend.clear()
        finally:
            await backend.close()
        return hits

    assert asyncio.run(play()) == expected


@pytest.mark.parametrize("slack", [0.0, 0.05])
def test_no_simulated_store_is_ever_above_its_limit(slack: float) -> None:
    asked = small(seed=random.Random(slack).randrange(100))
    store = Evicting(asked.bytes / 50, slack, recency=100)
    for number, key in enumerate(asked.asked):
        store.ask(key, asked.sizes[key], number)
        assert 0 <= store.bytes <= store.limit


def test_a_lost_server_costs_its_own_keys_and_its_return_refills_it() -> None:
    asked = small()
    places = traffic.servers(asked.names, 3)
    assert set(places) == {0, 1, 2}
    loss = traffic.lose_a_server(asked, places, [Evicting(asked.bytes / 30) for _ in range(3)], window=500)
    assert loss.without < loss.before
    assert loss.refilling[-1] > loss.without
    # Nothing of the others' is lost: they hit as often as without an accident.
    alone = [Evicting(asked.bytes / 30) for _ in range(3)]
    hits = sum(
        alone[places[key]].ask(key, asked.sizes[key], number) and places[key] != 0 and 10_000 <= number < 15_000
        for number, key in enumerate(asked.asked)
    )
    assert loss.without == hits / 5000


def test_skew_is_against_the_mean_and_tiers_let_a_part_through() -> None:
    assert traffic.skew([0, 0, 0, 1], [1, 1, 1, 1], 2) == (1.5, 0.5)
    asked = small()
    through = traffic.behind_tiers(asked, 4, 5000, seed=1)
    assert 0 < len(through) < len(asked.asked)
    assert max(map(through.count, range(5))) <= 4 * 4


def test_masters_get_their_share_of_the_partitions() -> None:
    nodes = traffic.masters(64, 3)
    assert all(abs(nodes.count(node) - 64 / 3) < 2 for node in range(3))


def test_what_the_servers_are_sent_is_counted(tmp_path: Path) -> None:
    of_redis = measure.commands_of("redis", tmp_path, 10, 500)
    assert of_redis["a hit"] == {"mget": 1, "rpush": 1}
    assert of_redis["a store"]["evalsha"] == 1
    of_memcached = measure.commands_of("memcached", tmp_path, 10, 500)
    assert of_memcached["a hit"] == {"get": 1}
    assert of_memcached["a store"]["set"] == 1


def test_the_script_prints_every_table(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--keys", "500", "--lookups", "5000", "--entries", "600", "--length", "300", "--seconds", "0.1"]
    assert main(options) == 0
    said = capfd.readouterr().out
    titles = [
        "Hit ratio",
        "The fullest",
        "One server away",
        "Bytes for each",
        "Commands for each",
        "One core",
        "What 1",
    ]
    assert all(f"\n{title}" in said for title in titles), said
