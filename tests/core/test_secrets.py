import multiprocessing
import os
import pickle
import shutil
import stat
import traceback
from pathlib import Path
from typing import Callable, Dict

import pytest

from claude_force_cache import Capabilities, SecretError
from claude_force_cache._secrets import Secrets, secret_path

LOCAL = Capabilities(shared_between_machines=False)
ALONE = Capabilities(persistent=False, shared_between_processes=False, shared_between_machines=False)
LONG = "a secret of 16 and more"


@pytest.fixture
def environ(tmp_path: Path) -> Dict[str, str]:
    return {"XDG_DATA_HOME": str(tmp_path / "data")}


def test_the_environment_comes_before_everything(environ: Dict[str, str]) -> None:
    environ["CLAUDE_CACHE_SECRET"] = LONG
    for capabilities in (LOCAL, ALONE, Capabilities()):
        found = Secrets.for_store(capabilities, environ, backend="x")
        assert found.values == (LONG.encode(),)
        assert found.origin == "CLAUDE_CACHE_SECRET"
    assert not secret_path(environ).exists()


def test_previous_secrets_are_read_after_the_current_one(environ: Dict[str, str]) -> None:
    environ["CLAUDE_CACHE_SECRET"] = "new" * 8
    environ["CLAUDE_CACHE_PREVIOUS_SECRETS"] = f"{'old' * 8}, {'older' * 8},{'new' * 8}"
    found = Secrets.from_environment(environ)
    assert found is not None
    assert found.values == (b"new" * 8, b"old" * 8, b"older" * 8)


def test_previous_secrets_alone_are_a_mistake(environ: Dict[str, str]) -> None:
    environ["CLAUDE_CACHE_PREVIOUS_SECRETS"] = LONG
    with pytest.raises(SecretError, match="set both"):
        Secrets.from_environment(environ)


def test_a_store_that_machines_share_has_no_default_secret(environ: Dict[str, str]) -> None:
    with pytest.raises(SecretError, match="set CLAUDE_CACHE_SECRET"):
        Secrets.for_store(Capabilities(), environ, backend="redis")
    assert not secret_path(environ).exists()


def test_a_store_inside_this_process_has_one_that_is_never_written(environ: Dict[str, str]) -> None:
    one, other = (Secrets.for_store(ALONE, environ, backend="memory") for _ in range(2))
    assert one.values != other.values
    assert not secret_path(environ).exists()


def test_a_local_store_makes_one_once_that_only_its_owner_can_read(environ: Dict[str, str]) -> None:
    one, other = (Secrets.for_store(LOCAL, environ, backend="disk") for _ in range(2))
    path = secret_path(environ)
    assert one.values == other.values == (path.read_bytes(),)
    assert len(one.values[0]) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["secret"]


def _read(environ: Dict[str, str]) -> bytes:
    return bytes(Secrets.for_store(LOCAL, environ, backend="disk").values[0])


def test_processes_that_start_together_get_the_same_one(environ: Dict[str, str]) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(_read, [environ] * 16))) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_can_read_is_refused(environ: Dict[str, str], mode: int) -> None:
    Secrets.for_store(LOCAL, environ, backend="disk")
    secret_path(environ).chmod(mode)
    with pytest.raises(SecretError, match="chmod 600"):
        Secrets.for_store(LOCAL, environ, backend="disk")


def test_a_link_in_place_of_the_file_is_refused(environ: Dict[str, str], tmp_path: Path) -> None:
    path = secret_path(environ)
    path.parent.mkdir(parents=True)
    (tmp_path / "planted").write_text("x" * 40)
    path.symlink_to(tmp_path / "planted")
    with pytest.raises(SecretError, match="cannot be used"):
        Secrets.for_store(LOCAL, environ, backend="disk")


def test_a_pipe_in_place_of_the_file_is_refused_and_not_waited_for(environ: Dict[str, str]) -> None:
    path = secret_path(environ)
    path.parent.mkdir(parents=True)
    os.mkfifo(path, 0o600)
    with pytest.raises(SecretError, match="is not a file"):
        Secrets.for_store(LOCAL, environ, backend="disk")


def test_a_file_cut_short_is_refused(environ: Dict[str, str]) -> None:
    Secrets.for_store(LOCAL, environ, backend="disk")
    secret_path(environ).write_bytes(b"short")
    with pytest.raises(SecretError, match="fewer than 16 bytes"):
        Secrets.for_store(LOCAL, environ, backend="disk")


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(environ: Dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the way")
    with pytest.raises(SecretError, match="or set CLAUDE_CACHE_SECRET"):
        Secrets.for_store(LOCAL, environ, backend="disk")


@pytest.mark.parametrize("values", [[], ["short"], [b"x" * 15], [LONG, ""], ["\ud800" * 20]])
def test_unfit_secrets_are_refused_without_showing_them(values: list) -> None:
    with pytest.raises(SecretError) as caught:
        Secrets.given(values)
    for value in values:
        if value:
            assert str(value) not in str(caught.value)


def test_printing_secrets_shows_only_where_they_come_from() -> None:
    assert repr(Secrets.given(LONG)) == "Secrets(origin='argument')"
    assert os.environ.get("CLAUDE_CACHE_SECRET", LONG) not in repr(Secrets.given(LONG))


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_folder_in_which_others_could_exchange_the_file_is_refused(environ: Dict[str, str], mode: int) -> None:
    Secrets.for_store(LOCAL, environ, backend="disk")
    secret_path(environ).parent.chmod(mode)
    with pytest.raises(SecretError, match="chmod go-w"):
        Secrets.for_store(LOCAL, environ, backend="disk")


def test_a_folder_of_another_user_is_refused(environ: Dict[str, str]) -> None:
    Secrets.for_store(LOCAL, environ, backend="disk")
    folder = secret_path(environ).parent
    if os.geteuid() == 0:
        os.chown(folder, 65534, -1)
    else:  # who cannot give a folder away has one of root's
        shutil.rmtree(folder)
        folder.symlink_to("/usr")
    with pytest.raises(SecretError, match="belongs to another user"):
        Secrets.for_store(LOCAL, environ, backend="disk")


def test_what_is_made_without_a_umask_is_closed_to_others_all_the_same(environ: Dict[str, str], tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Secrets.for_store(LOCAL, environ, backend="disk")
    finally:
        os.umask(before)
    path = secret_path(environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, path.parent.parent):
        assert folder != tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) & 0o022 == 0


def test_a_device_that_never_ends_in_place_of_the_file_is_refused(environ: Dict[str, str]) -> None:
    path = secret_path(environ)
    path.parent.mkdir(parents=True, mode=0o700)
    path.symlink_to("/dev/zero")
    with pytest.raises(SecretError, match="cannot be used"):
        Secrets.for_store(LOCAL, environ, backend="disk")


@pytest.mark.parametrize("copied", [pickle.dumps, lambda secrets: pickle.dumps(secrets.values)])
def test_secrets_are_not_pickled(copied: Callable[[Secrets], bytes]) -> None:
    with pytest.raises(TypeError, match="secret is not pickled"):
        copied(Secrets.given(LONG))


def test_no_traceback_with_local_variables_shows_a_secret(environ: Dict[str, str]) -> None:
    def shown(call: Callable[[], object]) -> str:
        with pytest.raises(SecretError) as caught:
            call()
        # Not the frame of this test, which has what it planted.
        trace = caught.value.__traceback__
        assert trace is not None
        while trace.tb_next is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        report = traceback.TracebackException(type(caught.value), caught.value, trace, capture_locals=True)
        return "".join(report.format())

    environ["CLAUDE_CACHE_SECRET"] = "hush"
    environ["CLAUDE_CACHE_PREVIOUS_SECRETS"] = "hushhush,hushhushhush"
    environ["ANTHROPIC_API_KEY"] = "hush-key"
    for call in (
        lambda: Secrets.for_store(LOCAL, environ, backend="disk"),
        lambda: Secrets.given(["hushhush"]),
        lambda: Secrets.given([b"hushhush"]),
        lambda: Secrets.given("hush\ud800" * 9),
    ):
        assert "environ" in (text := shown(call)) or "values" in text
        assert "hush" not in text
    secret_path(environ).parent.mkdir(parents=True, mode=0o700)
    secret_path(environ).write_text("hushhush")
    secret_path(environ).chmod(0o600)
    del environ["CLAUDE_CACHE_SECRET"], environ["CLAUDE_CACHE_PREVIOUS_SECRETS"]
    assert "hush" not in shown(lambda: Secrets.for_store(LOCAL, environ, backend="disk"))
