"""``claude-force conformance``: whether a backend keeps the contract."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import os
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Iterator, List, Optional

import typer

from ._annotated import Annotated
from ._console import print_json, print_table, progress
from ._failure import FAILED, CommandError
from ._options import JSONOption

if TYPE_CHECKING:
    from claude_force_cache.testing import CheckResult, Report

__all__ = ["conformance"]

_STORAGE = "HYPOTHESIS_STORAGE_DIRECTORY"


def conformance(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The cache, for example redis://localhost/9 or yours://host.")
    ],
    as_json: JSONOption = False,
    examples: Annotated[
        Optional[int], typer.Option("--examples", metavar="N", min=1, help="How many examples the state machine runs.")
    ] = None,
    seed: Annotated[
        Optional[int], typer.Option("--seed", metavar="N", min=0, help="Run the examples that follow from N.")
    ] = None,
    check: Annotated[
        Optional[List[str]], typer.Option("--check", metavar="NAME", help="Run this check only; may be given again.")
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Run other examples each time; the seed is shown.")] = False,
) -> None:
    """Check a backend against every rule of the contract, in namespaces of its own on a real store.

    A namespace and limits that the URL has are not used, and entries that others have in the store are not touched.
    Exits with 1 if a check fails.
    """
    with _storage_that_goes():
        report = _run(url, checks=check or None, examples=examples, seed=seed, random=random)
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if not report.passed:
        raise typer.Exit(FAILED)


def _run(
    url: str, *, checks: Optional[List[str]], examples: Optional[int], seed: Optional[int], random: bool
) -> "Report":
    try:
        from claude_force_cache.testing import CHECKS, check_backend, suite_of_url
    except ModuleNotFoundError as error:
        raise CommandError(
            f"the conformance kit needs the library {error.name!r}, which is not installed: "
            "pip install 'claude-force-cache[testing]'"
        ) from error
    unknown = sorted(set(checks or ()) - set(CHECKS))
    if unknown:
        near = get_close_matches(unknown[0], CHECKS, n=1)
        hint = f"did you mean {near[0]}?" if near else "a run without --check lists them"
        raise CommandError(f"there is no check {unknown[0]!r}: {hint}")
    suite = suite_of_url(url)
    with progress() as bar:
        task = bar.add_task("checking", total=len(checks or CHECKS))
        return check_backend(
            suite,
            derandomize=not random,
            seed=seed,
            max_examples=examples,
            checks=checks,
            on_result=lambda result: bar.update(task, advance=1, description=result.name),
        )


@contextmanager
def _storage_that_goes() -> Iterator[None]:
    """Keep Hypothesis from leaving a folder behind where the command was started."""
    if _STORAGE in os.environ:
        yield
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.environ[_STORAGE] = folder
        try:
            yield
        finally:
            del os.environ[_STORAGE]


def _print(report: "Report") -> None:
    print_table(
        ("check", "rule", "result"), [(result.name, result.rule, _result_text(result)) for result in report.results]
    )
    for result in report.of("failed"):
        typer.echo(f"\n{result.detail}")
    counts = ", ".join(f"{len(report.of(outcome))} {outcome}" for outcome in ("passed", "failed", "not run"))
    typer.echo(f"\n{len(report.results)} checks: {counts}; seed {report.seed}, {report.max_examples} examples")


def _result_text(result: "CheckResult") -> str:
    return f"not run: {result.detail}" if result.outcome == "not run" else result.outcome
