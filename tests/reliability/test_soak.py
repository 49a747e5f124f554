"""The soak, in a short form: everything fails about once, and what has to hold at the end has to hold here."""

import pytest

from reliability.soak import main


@pytest.mark.timeout(400)  # four processes that start on a busy machine take their time
@pytest.mark.parametrize("backend", ["disk", "redis", "memcached"])
def test_processes_that_do_everything_while_everything_fails_leave_an_exact_account_and_nothing_else(
    backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(["--backend", backend, "--minutes", "0.25", "--processes", "4", "--rate", "30"])
    said = capfd.readouterr().out
    assert code == 0, said
    assert "no problem" in said
