"""TLS where the servers are several: a cluster and Sentinels that speak nothing else, with an authority of our own."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
import redis

from claude_force_backends.redis import RedisBackend
from claude_force_cache import BackendSettings, BackendUnavailableError, BackendURL

_SECONDS = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A Redis or a Sentinel that speaks TLS alone, asks for a client's certificate, and uses TLS among its own."""

    def __init__(self, folder: Path, certificates: Path, *arguments: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail("redis-server is not on PATH: install it with `make servers`", pytrace=False)
        self.port = free_port()
        folder.mkdir()
        files = {"ca-cert-file": "authority.crt", "cert-file": "server.crt", "key-file": "server.key"}
        lines = [f"tls-{name} {certificates / file}" for name, file in files.items()]
        lines += [f"port 0\ntls-port {self.port}\nbind 127.0.0.1\ndir {folder}\ntls-replication yes", *arguments]
        path = folder / "redis.conf"
        path.write_text("\n".join(lines) + "\n")
        sentinel = ["--sentinel"] * any(line.startswith("sentinel ") for line in arguments)
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen([program, str(path), *sentinel], stdout=log, stderr=log)
        self.client = redis.Redis(
            port=self.port,
            host="127.0.0.1",
            socket_timeout=5,
            ssl=True,
            ssl_ca_certs=str(certificates / "authority.crt"),
            ssl_certfile=str(certificates / "client.crt"),
            ssl_keyfile=str(certificates / "client.key"),
        )
        until(lambda: self.client.info("server")["process_id"] == self._process.pid, "the start of a server")

    def end(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait(_SECONDS)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"it did not happen in time: {what}"
        time.sleep(0.02)


@contextmanager
def started(folder: Path, certificates: Path, *configurations: str) -> Iterator[List[Server]]:
    servers: List[Server] = []
    try:
        for number, lines in enumerate(configurations):
            ports = [str(server.port) for server in servers]
            servers.append(Server(folder / f"server-{number}", certificates, *lines.format(*ports).splitlines()))
        yield servers
    finally:
        for server in servers:
            server.end()


@contextmanager
def cluster(folder: Path, certificates: Path) -> Iterator[str]:
    """Two masters that have half of the slots each. The URL names one, which tells of the other."""
    buses = [free_port(), free_port()]
    lines = ['save ""\ncluster-enabled yes\ntls-cluster yes\ncluster-port ' + str(bus) for bus in buses]
    with started(folder, certificates, *lines) as servers:
        for server, first, last in zip(servers, (0, 8192), (8191, 16383)):
            server.client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        servers[0].client.execute_command("CLUSTER SET-CONFIG-EPOCH", 1)
        servers[1].client.execute_command("CLUSTER SET-CONFIG-EPOCH", 2)
        servers[0].client.execute_command("CLUSTER MEET", "127.0.0.1", servers[1].port, buses[1])
        for server in servers:
            until(lambda: server.client.cluster("INFO")["cluster_state"] == "ok", "a sound cluster")  # noqa: B023 - at once
        yield f"redis://127.0.0.1:{servers[0].port}/0?topology=cluster"


@contextmanager
def sentinels(folder: Path, certificates: Path) -> Iterator[str]:
    """A master, and one Sentinel that knows it."""
    with started(folder, certificates, 'save ""', "sentinel monitor answers 127.0.0.1 {0} 1") as (_, sentinel):
        yield f"redis://127.0.0.1:{sentinel.port}/0?topology=sentinel&sentinel_service=answers"


@pytest.fixture(params=[cluster, sentinels])
def url(request: pytest.FixtureRequest, tmp_path: Path, certificates: Path) -> Iterator[str]:
    with request.param(tmp_path, certificates) as made:
        yield made


def backend(url: str, namespace: str, **options: Any) -> RedisBackend:
    parsed, query = BackendURL.parse(url)
    return RedisBackend(BackendSettings(parsed, namespace, None, None, {**query, **options}))


def trusting(folder: Path, authority: str = "authority", client: str = "client") -> Dict[str, Any]:
    return {
        "tls": True,
        "tls_ca_file": str(folder / f"{authority}.crt"),
        "tls_cert_file": str(folder / f"{client}.crt"),
        "tls_key_file": str(folder / f"{client}.key"),
    }


def test_every_server_is_reached_by_tls_and_no_other_is_let_in(url: str, certificates: Path, namespace: str) -> None:
    async def work() -> None:
        store = backend(url, namespace, **trusting(certificates), socket_timeout=5.0)
        await store.open()
        try:
            keys = [f"key-{number}" for number in range(50)]
            await store.set_many({key: (key.encode(), None) for key in keys})
            found = await store.get_many(keys)
            assert {key: entry.value for key, entry in found.items()} == {key: key.encode() for key in keys}
            waiting = asyncio.ensure_future(store.wait(keys[0], timeout=30))
            await asyncio.wait([waiting], timeout=0.2)
            assert not waiting.done()
            assert await store.delete(keys[0])
            await asyncio.wait_for(waiting, 10)
            assert await store.clear() == len(keys) - 1
        finally:
            await store.close()
        refused = {
            "an authority that we do not trust": trusting(certificates, authority="stranger"),
            "a client that the servers do not know": trusting(certificates, client="stranger"),
            "no TLS at all": {},
        }
        for what, options in refused.items():
            with pytest.raises(BackendUnavailableError) as caught:
                await backend(url, namespace, **options, socket_timeout=1.0).open()
            assert len(str(caught.value).splitlines()) == 1, what

    asyncio.run(work())


def test_servers_of_another_name_are_refused(url: str, certificates: Path, namespace: str) -> None:
    store = backend(url.replace("127.0.0.1", "localhost"), namespace, **trusting(certificates), socket_timeout=2.0)
    with pytest.raises(BackendUnavailableError, match=r"(?i)certificate|hostname"):
        asyncio.run(store.open())
