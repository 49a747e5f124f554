"""Redis deployments of several servers: a cluster of three masters with replicas, and a master that Sentinels watch.

``CLAUDE_FORCE_TEST_REDIS_SERVER`` names another program than ``redis-server``, such as one of Valkey's.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_SECONDS = 20.0
_SLOTS = 16384


def free_ports(count: int) -> List[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


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


class Node:
    """A Redis process of our own, which can be killed and started again on its port."""

    def __init__(self, folder: Path, port: int, arguments: List[str]) -> None:
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self._folder = folder
        self._arguments = arguments
        self._process: Optional[subprocess.Popen[bytes]] = None
        self.client = redis.Redis(port=port, socket_timeout=5)

    def start(self) -> None:
        program = shutil.which(os.environ.get("CLAUDE_FORCE_TEST_REDIS_SERVER", "redis-server"))
        if program is None:
            pytest.fail("redis-server is not on PATH: install it with `make servers`", pytrace=False)
        self._folder.mkdir(exist_ok=True)
        base = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--daemonize", "no"]
        if self._arguments[0].startswith("--"):
            base += ["--save", ""]
        else:
            base = [self._arguments[0], *base]
        rest = self._arguments if self._arguments[0].startswith("--") else self._arguments[1:]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([program, *base, *rest], stdout=log, stderr=log)
        pid = self._process.pid
        until(lambda: self.client.info("server")["process_id"] == pid, f"the start of {self.address}")

    def signal(self, sig: int) -> None:
        assert self._process is not None
        self._process.send_signal(sig)
        if sig == signal.SIGSTOP:
            _, status = os.waitpid(self._process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f"{self.address} ended instead of stopping"

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(_SECONDS)
            self._process = None

    def end(self) -> None:
        self.kill()
        self.client.close()


class Cluster:
    """Three masters, and a replica of each."""

    def __init__(self, folder: Path) -> None:
        ports = free_ports(12)
        quick = "--cluster-enabled yes --cluster-node-timeout 1000 --cluster-replica-validity-factor 0"
        self.nodes = [
            Node(
                folder / str(port),
                port,
                [*quick.split(), "--repl-diskless-sync-delay", "0", "--cluster-port", str(bus)],
            )
            for port, bus in zip(ports[:6], ports[6:])
        ]
        self._buses = ports[6:]

    @property
    def url(self) -> str:
        return f"redis://{','.join(node.address for node in self.nodes[:3])}/0?topology=cluster"

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        shares = [(0, 5460), (5461, 10922), (10923, _SLOTS - 1)]
        for epoch, (node, (first, last)) in enumerate(zip(self.nodes, shares), start=1):
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", epoch)
        for node, bus in zip(self.nodes[1:], self._buses[1:]):
            self.nodes[0].client.execute_command("CLUSTER MEET", "127.0.0.1", node.port, bus)
        ids = [self.id_of(node) for node in self.nodes]
        until(lambda: all(self.knows_all(node) for node in self.nodes), "that the nodes meet")
        for replica, master in zip(self.nodes[3:], ids):
            replica.client.execute_command("CLUSTER REPLICATE", master)
        self.until_well()

    def knows_all(self, node: Node) -> bool:
        return int(self.info(node)["cluster_known_nodes"]) == len(self.nodes)

    def until_well(self) -> None:
        """Return when every node says that all is well, and each replica has what its master has."""
        until(lambda: all(self.info(node)["cluster_state"] == "ok" for node in self.nodes), "a sound cluster")
        until(lambda: sum(self.is_replica(node) for node in self.nodes) == 3, "three replicas that follow")

    def end(self) -> None:
        for node in self.nodes:
            node.end()

    @staticmethod
    def id_of(node: Node) -> str:
        return _text(node.client.execute_command("CLUSTER MYID"))

    @staticmethod
    def info(node: Node) -> Dict[str, str]:
        answer = node.client.execute_command("CLUSTER INFO")
        if isinstance(answer, dict):
            return answer
        return dict(line.split(":", 1) for line in _text(answer).split("\r\n") if line)

    @staticmethod
    def is_replica(node: Node) -> bool:
        state = node.client.info("replication")
        return state["role"] == "slave" and state["master_link_status"] == "up"

    def masters(self) -> List[Node]:
        return [node for node in self.nodes if node.client.info("replication")["role"] == "master"]

    def owner(self, slot: int) -> Node:
        for first, last, (_, port, *_), *_ in _rows(self.nodes[0].client):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def move(self, slot: int, pause: Callable[[], None] = lambda: None) -> None:
        """Move a slot with its keys to another master, key by key, as ``redis-cli --cluster reshard`` does."""
        source = self.owner(slot)
        target = next(node for node in self.masters() if node is not source)
        target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", self.id_of(target))
        while True:
            names = source.client.execute_command("CLUSTER GETKEYSINSLOT", slot, 10)
            if not names:
                break
            source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)
            pause()
        for node in (target, source, *(other for other in self.masters() if other not in (source, target))):
            node.client.execute_command("CLUSTER SETSLOT", slot, "NODE", self.id_of(target))


def _rows(client: Any) -> List[Any]:
    return _raw(client, "CLUSTER", "SLOTS")


def _text(answer: Any) -> str:
    return answer.decode() if isinstance(answer, bytes) else str(answer)


class Watched:
    """A master with a replica, and three Sentinels that ask for a password."""

    service = "answers"
    password = "sentinels-secret"

    def __init__(self, folder: Path) -> None:
        ports = free_ports(5)
        self.master = Node(folder / "master", ports[0], ["--repl-diskless-sync-delay", "0"])
        self.replica = Node(folder / "replica", ports[1], ["--replicaof", "127.0.0.1", str(ports[0])])
        self.sentinels = []
        for port in ports[2:]:
            path = folder / f"sentinel-{port}.conf"
            path.write_text(
                f"sentinel monitor {self.service} 127.0.0.1 {ports[0]} 2\n"
                f"sentinel down-after-milliseconds {self.service} 500\n"
                f"sentinel failover-timeout {self.service} 2000\n"
                f"requirepass {self.password}\nsentinel sentinel-pass {self.password}\n"
            )
            sentinel = Node(folder / str(port), port, [str(path), "--sentinel"])
            sentinel.client = redis.Redis(port=port, password=self.password, socket_timeout=5)
            self.sentinels.append(sentinel)

    @property
    def url(self) -> str:
        hosts = ",".join(node.address for node in self.sentinels)
        return f"redis://{hosts}/0?topology=sentinel&sentinel_service={self.service}&sentinel_password={self.password}"

    def start(self) -> None:
        for node in (self.master, self.replica, *self.sentinels):
            node.start()
        until(lambda: Cluster.is_replica(self.replica), "a replica that follows")
        for sentinel in self.sentinels:
            until(lambda: self._sees_all(sentinel), "that the Sentinels know each other")  # noqa: B023 - at once

    def _sees_all(self, sentinel: Node) -> bool:
        answer = _raw(sentinel.client, "SENTINEL", "MASTER", self.service)
        pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2])
        state = {_text(name): _text(value) for name, value in pairs}
        return state["num-slaves"] == "1" and state["num-other-sentinels"] == "2"

    def end(self) -> None:
        for node in (*self.sentinels, self.replica, self.master):
            node.end()


def _raw(client: Any, *command: str) -> Any:
    # The client turns answers into its own forms, which differ by version.
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*command)
        return connection.read_response()
    finally:
        client.connection_pool.release(connection)


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The session's Redis Cluster. A test that kills a node starts it again."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


@pytest.fixture
def watched_redis(tmp_path: Path) -> Iterator[Watched]:
    """A Redis behind Sentinels, for one test alone."""
    watched = Watched(tmp_path)
    try:
        watched.start()
        yield watched
    finally:
        watched.end()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with ``authority``, ``server``, ``client``, and ``stranger``, which nobody signed: .crt and .key."""
    authority = _certificate(tmp_path, "authority", None)
    for name in ("server", "client"):
        _certificate(tmp_path, name, authority)
    _certificate(tmp_path, "stranger", None)
    return tmp_path


def _usage_of_key(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate(
    folder: Path, name: str, issuer: Optional[Tuple[x509.Certificate, Any]]
) -> Tuple[x509.Certificate, Any]:
    """Write ``name``.crt and ``name``.key for 127.0.0.1, signed by ``issuer`` or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = key if issuer is None else issuer[1]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        # Python 3.13 verifies strictly, to the letter of RFC 5280.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_usage_of_key(authority=issuer is None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, key
