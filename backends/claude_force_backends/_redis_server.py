"""Where the servers of a Redis are, and how to log in: what a URL and its options say."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from claude_force_cache import BackendURL, InvalidOptionError, InvalidURLError

__all__ = ["CLUSTER", "SENTINEL", "STANDALONE", "Deployment", "Server"]

STANDALONE, SENTINEL, CLUSTER = "standalone", "sentinel", "cluster"
_REDIS_PORT, _SENTINEL_PORT = 6379, 26379


class Server:
    """One server, and how to connect to it. Its text is its address, without a login.

    :param arguments: what the client's connection is made with.
    """

    def __init__(self, connection_type: Any, address: str, arguments: Dict[str, Any]) -> None:
        self.host: str = arguments.get("host", "")
        self._type = connection_type
        self._address = address
        self._arguments = arguments

    def __str__(self) -> str:
        return self._address

    def connection(self) -> AbstractConnection:
        """Return a connection that is not connected yet."""
        connection: AbstractConnection = self._type(**self._arguments)
        return connection


class Deployment:
    """All that belongs to one Redis: a single server, a master that Sentinels watch, or a cluster.

    :param seeds: the servers that the URL names: the server itself, the Sentinels, or some nodes of the cluster.
    :raises InvalidURLError: if the URL names several servers where there can be one, or no number as database.
    :raises InvalidOptionError: if an option does not go with the topology.
    """

    def __init__(self, url: BackendURL, options: Mapping[str, Any]) -> None:
        self.url = url
        self.options = options
        self.topology: str = options["topology"]
        self.service: Optional[str] = options["sentinel_service"]
        path: Optional[str] = options["socket_path"]
        self._check(url, options)
        common: Dict[str, Any] = {
            "socket_timeout": None,
            # A deadline holds for each exchange, with connecting; this bounds only its clean-up.
            "socket_connect_timeout": options["socket_timeout"],
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        self._type: Any = Connection
        if options["tls"]:
            self._type = SSLConnection
            common.update(
                ssl_ca_certs=options["tls_ca_file"],
                ssl_certfile=options["tls_cert_file"],
                ssl_keyfile=options["tls_key_file"],
                ssl_check_hostname=True,
            )
        self._arguments = {"db": _database(url), "username": url.username, "password": url.password, **common}
        if path is not None:
            self.seeds = [Server(UnixDomainSocketConnection, path, {**self._arguments, "path": path})]
            return
        hosts: Tuple[Tuple[str, Optional[int]], ...] = url.hosts or (("localhost", None),)
        if self.topology == SENTINEL:
            login = {"username": options["sentinel_username"], "password": options["sentinel_password"]}
            self.seeds = [self._at(host, port or _SENTINEL_PORT, {**common, **login}) for host, port in hosts]
        else:
            self.seeds = [self.server(host, port or _REDIS_PORT) for host, port in hosts]

    def __str__(self) -> str:
        return ",".join(map(str, self.seeds))

    def server(self, host: str, port: int) -> Server:
        """Return the Redis server at an address that a Sentinel or a cluster's node told."""
        return self._at(host, port, self._arguments)

    def _at(self, host: str, port: int, arguments: Dict[str, Any]) -> Server:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return Server(self._type, address, {**arguments, "host": host, "port": port})

    def _check(self, url: BackendURL, options: Mapping[str, Any]) -> None:
        if self.topology == STANDALONE and len(url.hosts) > 1:
            raise InvalidURLError(
                f"{url} names {len(url.hosts)} servers, a standalone Redis is one: "
                "add topology=cluster or topology=sentinel, or name one server"
            )
        if self.topology == CLUSTER and _database(url) != 0:
            raise InvalidURLError(f"{url} names database {_database(url)}: a cluster has database 0 alone")
        if self.topology != STANDALONE and options["socket_path"] is not None:
            raise InvalidOptionError(f"option 'socket_path' does not go with topology={self.topology}: name hosts")
        given: List[str] = [name for name in _SENTINEL_OPTIONS if options[name] is not None]
        if self.topology != SENTINEL and given:
            raise InvalidOptionError(f"option {given[0]!r} needs topology=sentinel")
        if self.topology == SENTINEL and self.service is None:
            raise InvalidOptionError(
                "topology=sentinel needs option 'sentinel_service', the name by which the Sentinels know the master"
            )


_SENTINEL_OPTIONS = ("sentinel_service", "sentinel_username", "sentinel_password")


def _database(url: BackendURL) -> int:
    database = url.path.strip("/") or "0"
    if not (database.isascii() and database.isdigit()):
        raise InvalidURLError(f"{url} names a database that is not a number; expected redis://host/0")
    return int(database)
