import string
from typing import Any, Dict, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_cache import (
    BackendURL,
    InvalidOptionError,
    InvalidURLError,
    Option,
    SecretError,
    UnknownBackendError,
    open_cache,
    parse_duration,
    parse_size,
    resolve_source,
)
from claude_force_cache._settings import convert_options


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://", BackendURL("memory")),
        ("disk:///var/cache/a%20b", BackendURL("disk", path="/var/cache/a b")),
        ("redis://h/0", BackendURL("redis", (("h", None),), "/0")),
        ("redis://:p%40ss@h:6380/1", BackendURL("redis", (("h", 6380),), "/1", None, "p@ss")),
        ("redis://u:@h", BackendURL("redis", (("h", None),), "", "u", "")),
        ("redis://u@h", BackendURL("redis", (("h", None),), "", "u", None)),
        ("memcached://a:1,[::1]:2,c", BackendURL("memcached", (("a", 1), ("::1", 2), ("c", None)))),
        ("lmdb-2:///x", BackendURL("lmdb-2", path="/x")),
    ],
)
def test_a_url_has_these_parts(url: str, expected: BackendURL) -> None:
    assert BackendURL.parse(url) == (expected, {})


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "expected NAME://"),
        ("redis", "expected NAME://"),
        ("redis:/host", "expected NAME://"),
        ("://host", "must be a backend's name"),
        ("Redis://host", "lower case"),
        ("redis://host:port", "host:port"),
        ("redis://host:0", "1 to 65535"),
        ("redis://host:70000", "1 to 65535"),
        ("redis://[::1", "Invalid IPv6|brackets"),
        ("redis://a,,b", "host or host:port"),
        ("redis://host?x", "malformed"),
        ("redis://host?a=1&a=2", "given twice"),
        ("redis://host/%ff", "UTF-8"),
        ("redis://host/\udcff", "UTF-8"),
        ("redis://ho st", "blank"),
        ("redis://host\n", "control character"),
        ("redis://host/\x00", "control character"),
        ("redis://ho%0D%0Ast/0", "blanks"),
        ("redis://host%3A1", "host's name"),
        ("redis://a%40b", "host's name"),
        ("redis://host%ff", "UTF-8"),
        ("disk:///a%0Ab", "control character"),
        ("redis://host:6#79/0", "%23"),
        ("redis://u%0D%0Aser:p@host", "control character"),
    ],
)
def test_a_malformed_url_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(InvalidURLError, match=reason):
        BackendURL.parse(url)


@given(
    st.text(string.ascii_letters + string.digits + "/@:%?#[]é ", min_size=5, max_size=12),
    st.sampled_from(["redis://u:{}@host:99999", "redis://u:{}@ho st", "redis://host?password={}&password=1"]),
)
def test_no_error_about_a_url_shows_its_password(password: str, form: str) -> None:
    from urllib.parse import quote

    hidden = "SECRET" + quote(password, safe="")
    with pytest.raises(InvalidURLError) as caught:
        BackendURL.parse(form.format(hidden))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://user:SECRET", "redis://:SECRET/0", "redis://a:1,user:SECRET/0?x=1"])
def test_a_login_that_lost_its_host_is_not_shown(url: str) -> None:
    with pytest.raises(InvalidURLError) as caught:
        BackendURL.parse(url)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://u:[SECRET::0]@host/0", "redis://u:a[SECRET]b@host/0", "redis://6,[SECRET::0]:0?ttl=4h@"]
)
def test_a_password_with_brackets_is_not_taken_for_an_address_and_shown(url: str) -> None:
    # Newer versions of Python take what stands between brackets for an address, older ones for a part of the login.
    try:
        said = str(BackendURL.parse(url)[0])
    except InvalidURLError as error:
        said = str(error)
    assert said.startswith(("redis://", "cache URL"))
    assert "SECRET" not in said


@pytest.mark.parametrize("url", ["redis://u:SEC?RET@host", "redis://u:SEC?RET=x@host", "redis://:SEC?R&ET@host/0"])
def test_a_bare_question_mark_in_a_password_does_not_show_it(url: str) -> None:
    with pytest.raises(InvalidURLError) as caught:
        BackendURL.parse(url)
    assert "SEC" not in str(caught.value)
    assert "RET" not in str(caught.value)


def test_printing_a_url_hides_the_password() -> None:
    url, _ = BackendURL.parse("redis://user:hunter2hunter2@host:1/0")
    assert str(url) == "redis://user:***@host:1/0"
    assert "hunter2" not in repr(url)


@given(
    st.builds(
        BackendURL,
        scheme=st.just("redis"),
        hosts=st.lists(
            st.tuples(st.sampled_from(["a", "b.example", "::1"]), st.none() | st.integers(1, 65535)), max_size=3
        ).map(tuple),
        path=st.text(string.ascii_letters + " %?#@é", max_size=8).map(lambda text: "/" + text),
        username=st.none() | st.text(string.ascii_letters + ":@/%", min_size=1, max_size=5),
    )
)
def test_what_is_printed_parses_to_the_same(url: BackendURL) -> None:
    assert BackendURL.parse(str(url))[0] == url


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("100MB", 10**8), ("64MiB", 2**26), ("1.5 kb", 1500), ("2g", 2 * 10**9), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1 000", "1e3", "10 apples", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("250ms", 0.25), ("15m", 900), ("24h", 86400), ("7d", 604800), ("1.5s", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1w", "nan", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


OPTIONS = (
    Option("pool", int, 4, "how many connections", minimum=1, maximum=1000),
    Option("ratio", float, 0.5, "a number"),
    Option("token", str, None, "hidden", secret=True),
)


def test_what_a_parser_says_does_not_show_a_secret_option() -> None:
    with pytest.raises(InvalidOptionError) as caught:
        Option("pin", int, 0, "a number", secret=True).convert("hush")
    assert "hush" not in str(caught.value)


def test_options_have_defaults_and_types() -> None:
    assert convert_options(OPTIONS, {}, owner="x") == {"pool": 4, "ratio": 0.5, "token": None}
    assert convert_options(OPTIONS, {"pool": "7", "ratio": 1}, owner="x") == {"pool": 7, "ratio": 1.0, "token": None}


@pytest.mark.parametrize(
    ("given_options", "reason"),
    [
        ({"pol": 1}, "backend 'x' has no option 'pol'; it knows: pool, ratio, token"),
        ({"pool": "many"}, "option 'pool' is 'many'"),
        ({"pool": 0}, "at least 1"),
        ({"pool": 1001}, "at most 1,000"),
        ({"pool": 10**400}, "at most 1,000"),
        ({"pool": 10**5000}, "'pool'"),
        ({"pool": [1]}, "not a list"),
        ({"pool": 1.5}, "option 'pool' is '1.5'"),
        ({"ratio": float("inf")}, "option 'ratio'"),
        ({"ratio": "nan"}, "finite"),
    ],
)
def test_unfit_options_are_refused_with_the_reason(given_options: Dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidOptionError, match=reason):
        convert_options(OPTIONS, given_options, owner="backend 'x'")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_bytes": 0}, "above zero"),
        ({"max_bytes": "-1"}, "expected a size"),
        ({"ttl": 0}, "above zero"),
        ({"ttl": "-5"}, "expected a duration"),
        ({"ttl_jitter": 1}, "below 1"),
        ({"timeout": 0}, "above zero"),
        ({"namespace": ""}, "1 to 64"),
        ({"namespace": "../up"}, "1 to 64"),
        ({"namespace": "a\n"}, "1 to 64"),
        ({"tenant": "a\x00b"}, "control"),
        ({"encrypt": "perhaps"}, "true or false"),
        ({"nonsense": 1}, "has no option 'nonsense'"),
    ],
)
def test_unfit_settings_of_a_cache_are_refused_at_once(options: Dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidOptionError, match=reason):
        open_cache("memory://", **options)


@pytest.mark.parametrize(
    ("table", "error", "reason"),
    [
        ({}, InvalidURLError, "'url' or 'backend'"),
        ({"url": "memory://", "backend": "memory"}, InvalidURLError, "either"),
        ({"backend": "memory", "opts": {}}, InvalidOptionError, "no entry 'opts'"),
        ({"backend": "memory", "options": []}, InvalidOptionError, "must be a table"),
        ({"backend": 5}, InvalidURLError, "a backend's name"),
        ({"url": 5}, InvalidURLError, "text, not a int"),
        ({"backend": "memry"}, UnknownBackendError, "did you mean 'memory'"),
        ({"backend": "redis", "options": {"port": "6379"}}, InvalidURLError, "1 to 65535"),
        ({"backend": "redis", "options": {"hosts": "a"}}, InvalidURLError, "list"),
        ({"backend": "disk", "options": {"path": "/tmp/\udcff"}}, InvalidURLError, "'path'.*UTF-8"),
        ({"backend": "redis", "options": {"host": "a\r\nFLUSHALL"}}, InvalidURLError, "'host'.*control"),
        ({"backend": "redis", "options": {"host": "user:hush@a"}}, InvalidURLError, "'host'.*name or address"),
        ({"backend": "redis", "options": {"hosts": ["a%0d%0ab"]}}, InvalidURLError, "'hosts'.*blanks"),
        ({"backend": "redis", "options": {"username": "a\nb"}}, InvalidURLError, "'username'.*control"),
        ({"backend": "disk", "options": {"path": "/tmp/a\nb"}}, InvalidURLError, "'path'.*control"),
        ({"backend": "redis", "options": {"socket_path": "/a\r\nb"}}, InvalidOptionError, "'socket_path'.*control"),
        (7, InvalidURLError, "not by a int"),
    ],
)
def test_a_malformed_table_is_refused_with_the_reason(table: Any, error: type, reason: str) -> None:
    with pytest.raises(error, match=reason):
        open_cache(table)


def test_a_table_and_a_url_say_the_same() -> None:
    by_url = open_cache("memory://?max_bytes=1MB&ttl=1h&namespace=team")
    by_table = open_cache({"backend": "memory", "options": {"max_bytes": 10**6, "ttl": 3600, "namespace": "team"}})
    mixed = open_cache({"url": "memory://?max_bytes=5&ttl=1h", "options": {"max_bytes": "1MB"}}, namespace="team")
    assert by_url.settings == by_table.settings == mixed.settings


def test_precedence_is_argument_then_environment_then_default() -> None:
    environ = {"CLAUDE_CACHE_URL": "redis://host"}
    assert resolve_source("memory://", "disk://", environ) == ("memory://", "argument")
    assert resolve_source(None, "disk://", environ) == ("redis://host", "CLAUDE_CACHE_URL")
    assert resolve_source(None, "disk://", {}) == ("disk://", "default")
    assert resolve_source(None, "disk://", {"CLAUDE_CACHE_URL": ""}) == ("disk://", "default")


def test_a_shared_store_without_a_secret_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.delenv("CLAUDE_CACHE_SECRET", raising=False)

    async def main(url: Optional[str]) -> None:
        cache = open_cache(url)
        try:
            with pytest.raises(SecretError, match="set CLAUDE_CACHE_SECRET"):
                await cache.open()
        finally:
            await cache.close()

    asyncio.run(main("redis://127.0.0.1:1"))
