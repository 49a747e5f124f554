"""Measure ``lmdb://`` beside ``disk://``: one process, then readers beside a writer, in processes of their own.

    python benchmark.py [FOLDER]

Needs the extra ``disk`` of claude-force-cache. FOLDER should be on the disk that the cache would be on. Numbers
are microseconds, medians; the backends are called directly, without the core's thread and sealing.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import random
import statistics
import sys
import tempfile
import time
from typing import Callable, Dict, List, Tuple

from claude_force_cache import BackendSettings, BackendURL, SyncBackend, load_backend

ENTRIES = 5000
SIZES = {"2 KB": 2_000, "200 KB": 200_000}
STORES: Dict[str, Tuple[str, Dict[str, object]]] = {
    "disk": ("disk", {}),
    "lmdb": ("lmdb", {}),
    "lmdb, sync=false": ("lmdb", {"sync": False}),
}
READERS = 4
SECONDS = 3.0


def open_store(name: str, folder: str) -> SyncBackend:
    scheme, options = STORES[name]
    path = f"{folder}/{name.replace(', ', '-')}"
    backend = load_backend(scheme).create(BackendSettings(BackendURL(scheme, path=path), options=options))
    assert isinstance(backend, SyncBackend)
    backend.open()
    return backend


def key(number: int) -> str:
    return f"{number:043d}"


def median(operation: Callable[[int], object], times: int) -> float:
    samples: List[float] = []
    for _ in range(times):
        number = random.randrange(ENTRIES)
        began = time.perf_counter()
        operation(number)
        samples.append(time.perf_counter() - began)
    return statistics.median(samples) * 1e6


def alone(name: str, folder: str, size: int) -> Dict[str, float]:
    entries = ENTRIES if size < 10_000 else ENTRIES // 50
    backend = open_store(name, folder)
    value = os.urandom(size)
    for first in range(0, entries, 100):
        backend.set_many({key(number): (value, None) for number in range(first, first + 100)})
    keys = [key(number) for number in range(100)]
    found = {
        "get": median(lambda number: backend.get(key(number % entries)), 5000),
        "get_many of 100, each": median(lambda _: backend.get_many(keys), 200) / 100,
        "set": median(lambda number: backend.set(key(number % entries), value, ttl=None), 200),
        "set_many of 100, each": median(
            lambda _: backend.set_many({each: (value, None) for each in keys}), 5 if size > 10_000 else 20
        )
        / 100,
        "usage": median(lambda _: backend.usage(), 2000),
    }
    backend.close()
    return found


def read_along(name: str, folder: str, results: multiprocessing.Queue[Tuple[int, float]]) -> None:
    backend = open_store(name, folder)
    samples: List[float] = []
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        samples.append(median(lambda number: backend.get(key(number)), 1))
    backend.close()
    samples.sort()
    results.put((len(samples), samples[int(len(samples) * 0.99)]))


def write_along(name: str, folder: str, done: multiprocessing.synchronize.Event) -> None:
    backend = open_store(name, folder)
    value = os.urandom(2_000)
    while not done.is_set():
        backend.set(key(random.randrange(ENTRIES)), value, ttl=None)
    backend.close()


def crowd(name: str, folder: str) -> Dict[str, float]:
    results: multiprocessing.Queue[Tuple[int, float]] = multiprocessing.Queue()
    done = multiprocessing.Event()
    writer = multiprocessing.Process(target=write_along, args=(name, folder, done))
    readers = [multiprocessing.Process(target=read_along, args=(name, folder, results)) for _ in range(READERS)]
    for process in (writer, *readers):
        process.start()
    counts = [results.get() for _ in readers]
    done.set()
    for process in (writer, *readers):
        process.join()
    return {
        f"{READERS} readers beside a writer: reads a second": sum(count for count, _ in counts) / SECONDS,
        f"{READERS} readers beside a writer: 99th percentile": max(slow for _, slow in counts),
    }


def main() -> None:
    multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        for title, size in SIZES.items():
            rows = {name: alone(name, f"{folder}/{size}", size) for name in STORES}
            if size < 10_000:
                for name, row in rows.items():
                    row.update(crowd(name, f"{folder}/{size}"))
            print(f"\n| {title} | {' | '.join(rows)} |\n|---|{'---:|' * len(rows)}")
            for measure in rows["disk"]:
                print(f"| {measure} | {' | '.join(f'{row[measure]:,.1f}' for row in rows.values())} |")


if __name__ == "__main__":
    main()
