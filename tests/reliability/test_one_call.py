"""The experiment of one call for many processes, in a short form."""

import pytest

from reliability.one_call import main


@pytest.mark.parametrize("backend", ["disk", "redis", "memcached"])
def test_processes_that_ask_at_once_make_one_call_and_a_killed_holder_costs_one_more(
    backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--backend", backend, "--rounds", "2", "--processes", "3", "--tasks", "20", "--kills", "1"]
    code = main([*options, "--long", "1.5"])
    said = capfd.readouterr().out
    assert code == 0, said
    assert "2 rounds of 3 processes x 20 tasks, 2 calls" in said
    assert "holder killed 1 times: 2 calls" in said
    assert "a call of 1.5 s: 1 calls" in said
