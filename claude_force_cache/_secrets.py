"""Secrets: where they come from, and the keys that are derived from them.

``CLAUDE_CACHE_SECRET`` is the secret that new entries are sealed with. ``CLAUDE_CACHE_PREVIOUS_SECRETS``, split
at commas, are older ones whose entries are still read. Without either, a store that stays on this machine uses
a random secret made once in a file that only its owner may read, and a store that other machines share is
refused: there is no default secret.
"""

from __future__ import annotations

import os
import secrets as random_secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ._capabilities import Capabilities
from ._errors import SecretError
from ._hidden import hide
from ._keys import encode_key

__all__ = ["SECRET_VARIABLE", "Keys", "Secrets", "derive_keys"]

SECRET_VARIABLE = "CLAUDE_CACHE_SECRET"  # noqa: S105 - the name of a variable
PREVIOUS_VARIABLE = "CLAUDE_CACHE_PREVIOUS_SECRETS"
MINIMUM_LENGTH = 16
_FILE_NAME = "secret"


@dataclass(frozen=True)
class Secrets:
    """One or more secrets, the first for new entries. Printing it shows only where they come from.

    :param values: the secrets, newest first.
    :param origin: ``argument``, ``CLAUDE_CACHE_SECRET``, a file's path, or ``this process only``.
    """

    values: Tuple[bytes, ...] = field(repr=False)
    origin: str

    @classmethod
    def given(cls, values: Union[str, bytes, Sequence[Union[str, bytes]]], origin: str = "argument") -> Secrets:
        """Return the secrets that were given, without repetitions.

        :raises SecretError: if there is none, or one has fewer than 16 bytes.
        """
        values = hide([values] if isinstance(values, (str, bytes)) else values)
        encoded = []
        for value in values:
            try:
                secret = hide(value.encode() if isinstance(value, str) else bytes(value))
            except UnicodeEncodeError:
                raise SecretError(f"a secret from {origin} is not valid UTF-8: use printable characters") from None
            if len(secret) < MINIMUM_LENGTH:
                raise SecretError(
                    f"a secret from {origin} has fewer than {MINIMUM_LENGTH} bytes: make one with "
                    'python -c "import secrets; print(secrets.token_urlsafe(32))"'
                )
            encoded.append(secret)
        if not encoded:
            raise SecretError(f"no secret was given by {origin}")
        return cls(tuple(dict.fromkeys(encoded)), origin)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Optional[Secrets]:
        """Return the secrets of the environment, or None where it has none.

        :raises SecretError: if one has fewer than 16 bytes, or only previous ones are set.
        """
        environ = hide(environ)
        current = hide(environ.get(SECRET_VARIABLE, ""))
        previous = [hide(text.strip()) for text in environ.get(PREVIOUS_VARIABLE, "").split(",") if text.strip()]
        if not current:
            if previous:
                raise SecretError(f"{PREVIOUS_VARIABLE} is set and {SECRET_VARIABLE} is not: set both")
            return None
        return cls.given([current, *previous], SECRET_VARIABLE)

    @classmethod
    def for_store(cls, capabilities: Capabilities, environ: Mapping[str, str], *, backend: str) -> Secrets:
        """Return the secrets for a store when none were given. May read and make the secret file, so it blocks.

        :raises SecretError: if other machines share the store, or the file cannot be made or is not safe.
        """
        environ = hide(environ)
        found = cls.from_environment(environ)
        if found is not None:
            return found
        if capabilities.shared_between_machines:
            raise SecretError(
                f"backend {backend!r} is shared between machines and needs a secret that all of them know: "
                f"set {SECRET_VARIABLE} to the same random text of 16 or more characters on each"
            )
        if not capabilities.persistent and not capabilities.shared_between_processes:
            return cls((hide(random_secrets.token_bytes(32)),), "this process only")
        path = secret_path(environ)
        return cls((_read_or_make(path),), str(path))


def secret_path(environ: Mapping[str, str]) -> Path:
    """Return where the secret of this user on this machine is kept: ``$XDG_DATA_HOME`` or ``~/.local/share``."""
    base = environ.get("XDG_DATA_HOME", "")
    try:
        root = Path(base) if base.startswith("/") else Path.home() / ".local" / "share"
    except RuntimeError:
        raise SecretError(f"there is no home folder for the secret file: set {SECRET_VARIABLE}") from None
    return root / "claude-force-cache" / _FILE_NAME


def _read_or_make(path: Path) -> bytes:
    try:
        try:
            return _read(path)
        except FileNotFoundError:
            _make_folder(path.parent)
            _check_folder(path.parent)
            draft = path.with_name(f"{_FILE_NAME}.{random_secrets.token_hex(8)}")
            descriptor = os.open(str(draft), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(random_secrets.token_urlsafe(32).encode())
                    file.flush()
                    os.fsync(file.fileno())
                # A link, not a rename: of two processes that start together, one secret wins for both.
                os.link(str(draft), str(path))
            except FileExistsError:
                pass
            finally:
                draft.unlink()
            return _read(path)
    except OSError as error:
        raise SecretError(
            f"the secret file {path} cannot be used ({error.strerror}): mend it, or set {SECRET_VARIABLE}"
        ) from error


def _make_folder(folder: Path) -> None:
    # pathlib makes the folders above with whatever the umask leaves, which may be everything.
    for missing in reversed([above for above in folder.parents if not above.exists()]):
        missing.mkdir(mode=0o755, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _check_folder(folder: Path) -> None:
    """Refuse a folder in which others could put a secret that they know."""
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise SecretError(
            f"the folder {folder} of the secret file belongs to another user: remove it, or set {SECRET_VARIABLE}"
        )
    if status.st_mode & 0o022:
        raise SecretError(
            f"the folder {folder} of the secret file can be changed by others: chmod go-w it, or set {SECRET_VARIABLE}"
        )


def _read(path: Path) -> bytes:
    # Not blocking: a pipe in its place would be waited for.
    descriptor = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise SecretError(f"the secret file {path} is not a file of this user: remove it, or set {SECRET_VARIABLE}")
        if status.st_mode & 0o077:
            raise SecretError(f"the secret file {path} can be read by others: make a new one, and chmod 600 it")
        _check_folder(path.parent)
        secret = hide(file.read(4096).strip())
    if len(secret) < MINIMUM_LENGTH:
        raise SecretError(f"the secret file {path} has fewer than {MINIMUM_LENGTH} bytes: remove it to get a new one")
    return secret


class Keys(NamedTuple):
    """What one secret gives for one namespace, tenant and algorithm.

    :param id: 8 bytes that name the secret inside sealed entries without telling anything about it.
    :param lookup: the key of the digest that requests are stored under.
    :param seal: the key that entries are sealed with.
    """

    id: bytes
    lookup: bytes
    seal: bytes


def derive_keys(secret: bytes, *, algorithm: str, namespace: str, tenant: str) -> Keys:
    """Return the keys for one secret by HKDF-SHA256 (RFC 5869), independent for each purpose and context."""

    def derive(purpose: str, length: int) -> bytes:
        info = b"claude-force-cache 1" + encode_key([purpose, algorithm, namespace, tenant])
        return hide(HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret))

    return Keys(bytes(derive("key id", 8)), derive("lookup", 32), derive("seal", 32))
