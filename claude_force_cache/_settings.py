"""Settings of a cache: the URL or table that chooses a backend, its options, and their conversion."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from ._backend import Clock
from ._errors import InvalidOptionError, InvalidURLError
from ._hidden import HiddenTable, hide

__all__ = [
    "BackendSettings",
    "BackendURL",
    "CacheSettings",
    "Option",
    "convert_options",
    "parse_boolean",
    "parse_duration",
    "parse_size",
]

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*\Z")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\Z", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?\Z", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"[^\x00-\x20\x7f%,/:?#@\\\[\]]+\Z")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+\Z")
_URL_PARTS = ("host", "port", "hosts", "path", "username", "password")


@dataclass(frozen=True)
class CacheSettings:
    """The settings that every cache has, whatever its backend; see :data:`CORE_OPTIONS` for their meaning."""

    namespace: str
    tenant: str
    max_bytes: Optional[int]
    ttl: Optional[float]
    ttl_jitter: float
    encrypt: bool
    compress: bool
    tier_bytes: int
    tier_ttl: float
    timeout: float
    lease: float


def parse_size(text: str) -> int:
    """Return a size in bytes from text such as ``4096``, ``100MB`` (10**6) or ``64MiB`` (2**20).

    :raises ValueError: if the text is no size.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError("expected a size such as 4096, 100MB or 64MiB")
    number, unit, binary = match.groups()
    factor = (1024 if binary else 1000) ** (" kmgt".index(unit.lower()) if unit else 0)
    return int(float(number) * factor) if "." in number else int(number) * factor


def parse_duration(text: str) -> float:
    """Return seconds from text such as ``90``, ``250ms``, ``15m``, ``24h`` or ``7d``.

    :raises ValueError: if the text is no duration.
    """
    match = _DURATION.match(text.strip())
    if match is None:
        raise ValueError("expected a duration such as 90, 250ms, 15m, 24h or 7d")
    number, unit = match.groups()
    return float(number) * _SECONDS[(unit or "s").lower()]


def parse_boolean(text: str) -> bool:
    """Return True for ``1 true yes on``, False for ``0 false no off``, in any case.

    :raises ValueError: if the text is neither.
    """
    word = text.strip().lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ValueError("expected true or false")


@dataclass(frozen=True)
class Option:
    """One option of a backend, as it may stand in the URL's query or in the table.

    :param name: the option's name.
    :param parse: turns the text of a URL into the value: ``str``, ``int``, ``float``, :func:`parse_size`,
        :func:`parse_duration`, :func:`parse_boolean`, or a function of your own that raises ValueError.
        A number or a boolean out of a table is given to it as text.
    :param default: the value where the option is not given.
    :param help: one line on what it means, with the unit.
    :param minimum: the least value, where there is one.
    :param secret: never shown.
    :param maximum: the greatest value, where there is one.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    minimum: Optional[float] = None
    secret: bool = False
    maximum: Optional[float] = None

    def convert(self, value: object) -> Any:
        """Return the typed value.

        :raises InvalidOptionError: if the value does not fit.
        """
        if value is None:
            return self.default
        if self.secret:
            value = hide(value)
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, (int, float)):
            try:
                value = repr(value)
            except ValueError:
                # Python writes out no whole number of more than 4,300 digits.
                raise InvalidOptionError(f"option {self.name!r} is a number of thousands of digits") from None
        if not isinstance(value, str):
            raise InvalidOptionError(
                f"option {self.name!r} takes text, a number or a boolean, not a {type(value).__name__}"
            )
        shown = "(hidden)" if self.secret else repr(value)
        try:
            result = self.parse(value)
        except ValueError as error:
            # What a parser says may quote what it was given.
            reason = "it cannot be read" if self.secret else error
            raise InvalidOptionError(f"option {self.name!r} is {shown}: {reason}") from None
        if _CONTROL.search(value):
            # They have no meaning in any option, and one in protocols, logs and terminals.
            raise InvalidOptionError(f"option {self.name!r} is {shown}: it contains a control character")
        if isinstance(result, float) and not math.isfinite(result):
            raise InvalidOptionError(f"option {self.name!r} is {shown}: expected a finite number")
        if self.minimum is not None and result < self.minimum:
            raise InvalidOptionError(f"option {self.name!r} is {shown}: expected at least {self.minimum:g}")
        if self.maximum is not None and result > self.maximum:
            raise InvalidOptionError(f"option {self.name!r} is {shown}: expected at most {self.maximum:,g}")
        return hide(result) if self.secret else result


def convert_options(options: Sequence[Option], given: Mapping[str, object], *, owner: str) -> Dict[str, Any]:
    """Return a value for each of ``options``, out of ``given`` or by default.

    :param owner: who the options belong to, for the message.
    :raises InvalidOptionError: if one is unknown (the message lists the known ones) or does not fit.
    """
    given = HiddenTable(given)
    known = {option.name: option for option in options}
    unknown = sorted(name for name in given if name not in known)
    if unknown:
        raise InvalidOptionError(
            f"{owner} has no option {', '.join(map(repr, unknown))}; it knows: {', '.join(sorted(known)) or 'none'}"
        )
    return {name: option.convert(given.get(name)) for name, option in known.items()}


@dataclass(frozen=True)
class BackendURL:
    """The parts of a cache URL that say where the store is. Printing it hides the password.

    :param scheme: the entry-point name of the backend.
    :param hosts: host names with port, or None for the default port; several where the URL lists several.
    :param path: the path with its leading slash, decoded, or the empty string.
    :param username: decoded, or None.
    :param password: decoded, or None.
    """

    scheme: str
    hosts: Tuple[Tuple[str, Optional[int]], ...] = ()
    path: str = ""
    username: Optional[str] = None
    password: Optional[str] = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.password is not None:
            object.__setattr__(self, "password", hide(self.password))

    def __str__(self) -> str:
        login = ""
        if self.username is not None or self.password is not None:
            login = quote(self.username or "", safe="") + (":***" if self.password is not None else "") + "@"
        hosts = ",".join(
            (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
            for host, port in self.hosts
        )
        return f"{self.scheme}://{login}{hosts}{quote(self.path)}"

    @classmethod
    def parse(cls, url: str) -> Tuple[BackendURL, Dict[str, str]]:
        """Return the parts of ``url`` and the options in its query.

        :raises InvalidURLError: if it is malformed. The message never quotes the login part.
        """
        if not isinstance(url, str):
            raise InvalidURLError(f"a cache URL is text, not a {type(url).__name__}")
        url = hide(url)
        try:
            return cls._parse(url)
        except ValueError as error:
            reason = "it is not valid UTF-8" if isinstance(error, UnicodeError) else str(error)
        # Out here, the frames that took the URL apart are no part of the traceback.
        raise InvalidURLError(f"cache URL {_redacted(url)!r} is malformed: {reason}")

    @classmethod
    def _parse(cls, url: str) -> Tuple[BackendURL, Dict[str, str]]:
        """Return what :meth:`parse` does.

        :raises ValueError: if it is malformed.
        """
        _require_text(url)
        # A control character would be dropped silently by urlsplit, and hides in a terminal.
        if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in url):
            raise ValueError("it contains a blank or a control character; encode it as %XX")
        head, separator, _ = url.partition("://")
        if not separator:
            raise ValueError("expected NAME://..., for example memory:// or disk:///var/cache/answers")
        if not _SCHEME.match(head):
            raise ValueError("the part before :// must be a backend's name in lower case")
        try:
            parts = urlsplit(url, allow_fragments=False)
        except ValueError:
            # Its message quotes what stands between brackets, which may be a password.
            raise ValueError(_HOST_EXPECTED) from None
        query = _parse_query(parts.query)
        names = [name for name, _ in query]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"option {repeated[0]!r} is given twice")
        login, _, hostpart = parts.netloc.rpartition("@")
        username, colon, password = login.partition(":")
        path, username = unquote(parts.path, errors="strict"), unquote(username, errors="strict")
        if path and not path.startswith("/"):
            raise ValueError("expected / or the end after the host; write # as %23")
        if _CONTROL.search(path + username):
            raise ValueError("its path or its user's name contains a control character")
        return (
            cls(
                scheme=head,
                hosts=_parse_hosts(hostpart),
                path=path,
                username=username or None,
                password=unquote(password, errors="strict") if colon else None,
            ),
            HiddenTable(dict(query)),
        )

    @classmethod
    def from_options(cls, scheme: str, given: Mapping[str, object]) -> Tuple[BackendURL, Dict[str, object]]:
        """Return the URL that a table spells out, and the options that are left.

        The table's options ``host``, ``port``, ``hosts`` (a list of ``"host:port"``), ``path``, ``username``
        and ``password`` are the parts of the URL.

        :raises InvalidURLError: if one of them is not of its type.
        """
        given = HiddenTable(given)
        parts = HiddenTable({name: given[name] for name in _URL_PARTS if given.get(name) is not None})
        rest = HiddenTable({name: value for name, value in given.items() if name not in _URL_PARTS})
        for name in ("host", "path", "username", "password"):
            if name in parts and not isinstance(parts[name], str):
                raise InvalidURLError(f"option {name!r} of backend {scheme!r} must be text")
            try:
                _require_text(str(parts.get(name, "")))
            except UnicodeError:
                raise InvalidURLError(f"option {name!r} of backend {scheme!r} is not valid UTF-8") from None
            if name != "password" and _CONTROL.search(parts.get(name, "")):
                raise InvalidURLError(f"option {name!r} of backend {scheme!r} contains a control character")
        port = parts.get("port")
        if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536):
            raise InvalidURLError(f"option 'port' of backend {scheme!r} must be a number from 1 to 65535")
        hosts: Tuple[Tuple[str, Optional[int]], ...] = ()
        if "hosts" in parts:
            listed = parts["hosts"]
            if "host" in parts or not isinstance(listed, (list, tuple)) or not all(isinstance(h, str) for h in listed):
                raise InvalidURLError(
                    f"option 'hosts' of backend {scheme!r} must be a list of \"host:port\", without 'host'"
                )
            try:
                hosts = _parse_hosts(",".join(listed))
            except ValueError as error:
                raise InvalidURLError(f"option 'hosts' of backend {scheme!r}: {error}") from None
        elif "host" in parts or port is not None:
            host = str(parts.get("host", "localhost"))
            if not (_HOST.match(host) or _IPV6.match(host)):
                raise InvalidURLError(f"option 'host' of backend {scheme!r} must be a host's name or address")
            hosts = ((host, port if isinstance(port, int) else None),)
        return (
            cls(
                scheme=scheme,
                hosts=hosts,
                path=str(parts.get("path", "")),
                username=_text(parts.get("username")),
                password=_text(parts.get("password")),
            ),
            rest,
        )


_HOST_EXPECTED = (
    "expected host or host:port, separated by commas, IPv6 in brackets, : @ [ and ] in a login as %3A %40 %5B and %5D"
)


def _require_text(value: str) -> None:
    value.encode("utf-8")  # refuses lone surrogates, which is how Python passes on bytes that are no text


def _text(value: object) -> Optional[str]:
    return None if value is None else str(value)


def _parse_query(text: str) -> List[Tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
    except ValueError:
        # Its message quotes the query, which may be the end of a password.
        raise ValueError("expected NAME=VALUE after ?, joined by &, and ? in a login as %3F") from None


def _parse_hosts(text: str) -> Tuple[Tuple[str, Optional[int]], ...]:
    return tuple(_parse_host(part) for part in text.split(",")) if text else ()


def _parse_host(text: str) -> Tuple[str, Optional[int]]:
    match = re.match(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@]+))(?::([0-9]{1,5}))?\Z", text)
    if match is None:
        raise ValueError(_HOST_EXPECTED)
    port = int(match.group(3)) if match.group(3) else None
    if port is not None and not 0 < port < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    host = match.group(1) or unquote(match.group(2), errors="strict")
    if match.group(2) and not _HOST.match(host):
        raise ValueError("a host's name has no blanks and none of % , / : ? # @ [ ] \\")
    return host, port


def _redacted(url: str) -> str:
    """Return the URL without anything that may be a login or an option's value."""
    head, separator, rest = url.partition("://")
    if not separator:
        return str(url) if re.match(r"[\w./-]*\Z", url) else "(hidden)"
    rest, _, query = rest.partition("?")
    if "@" in query:  # more likely a login with a bare question mark than an option
        return f"{head}://(hidden)"
    if "@" in rest:
        return f"{head}://***@{rest.rpartition('@')[2]}"
    hosts, slash, path = rest.partition("/")
    try:
        _parse_hosts(hosts)
    except ValueError:
        hosts = "***"  # perhaps a login without its host
    return f"{head}://{hosts}{slash}{path}"


@dataclass(frozen=True)
class BackendSettings:
    """What a plugin's ``create`` is given. Printing it hides passwords and secret options.

    :param url: where the store is.
    :param namespace: the part of the store that belongs to this cache: 1 to 64 characters out of
        ``A-Z a-z 0-9 . _ -``.
    :param max_bytes: the limit of the namespace in bytes, above zero, or None for no limit.
    :param clock: where to read the time from, or None for the store's own.
    :param options: a typed value for every option of the plugin.
    """

    url: BackendURL
    namespace: str = "default"
    max_bytes: Optional[int] = None
    clock: Optional[Clock] = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


CacheTable = Mapping[str, object]
CacheSource = Union[str, CacheTable]
