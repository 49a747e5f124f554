"""Fuzzing: what reads entries, records, replies, URLs and files is given bytes that somebody made up.

``python -m reliability.fuzz`` gives each target of :mod:`.fuzz_targets` 100,000 inputs, each target in a process of
its own with a limit on its memory and on the time of an input. With atheris installed the inputs are those that
reach new code; without it they are mutations of the seeds at random. A finding ends its target: the input is kept
in a file, and ``python -m reliability.fuzz TARGET --input FILE`` shows the error again.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, List, NamedTuple, Optional

__all__ = ["main", "mutated"]

_MOST_SECONDS = 10
"""How long one input may take. The slowest takes some milliseconds."""

_MOST_MEGABYTES = 1024
"""What a process may need, with the interpreter, the libraries and the fuzzer itself."""

_LONGEST = 8192
_INSTRUMENTED = ["claude_force_cache", "claude_force_backends", "claude_force_orchestrator"]


class _Outcome(NamedTuple):
    target: str
    inputs: int
    seconds: float
    coverage: str
    megabytes: str
    finding: Optional[Path]


def mutated(target: Any, source: random.Random) -> bytes:
    """Return a seed of a target after a few changes: bits, bytes, words, numbers, pieces of other seeds."""
    data = bytearray(source.choice(target.seeds))
    for _ in range(source.randint(1, 5)):
        at = source.randint(0, len(data))
        change = source.randrange(7)
        if change == 0 and at < len(data):
            data[at] ^= 1 << source.randrange(8)
        elif change == 1:
            data[at:at] = bytes(source.randrange(256) for _ in range(source.randint(1, 8)))
        elif change == 2:
            del data[at : at + source.randint(1, 24)]
        elif change == 3 and target.words:
            data[at:at] = source.choice(target.words)
        elif change == 4:
            other = source.choice(target.seeds)
            data[at:] = other[source.randint(0, len(other)) :]
        elif change == 5:
            number = source.choice([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 32) - 1, (1 << 64) - 1])
            width = source.choice([1, 2, 4, 8])
            data[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "big")
        else:
            data[at:at] = data[at : at + source.randint(1, 200)] * source.randint(1, 4)
    return bytes(data[:_LONGEST])


def _run_plain(name: str, runs: int, seed: int) -> None:
    """Check mutations at random; print what a fuzzer prints."""
    from .fuzz_targets import TARGETS

    def expired(*_: object) -> None:
        raise TimeoutError(f"an input took more than {_MOST_SECONDS} s")

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    limit = (used + _MOST_MEGABYTES) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, expired)
    target, source = TARGETS[name](), random.Random(seed)
    for number in range(runs):
        data = target.seeds[number] if number < len(target.seeds) else mutated(target, source)
        signal.alarm(_MOST_SECONDS)
        try:
            target.check(data)
        except BaseException:
            Path(f"crash-{name}-{number}").write_bytes(data)
            raise
    signal.alarm(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"stat::number_of_executed_units: {runs}\nstat::peak_rss_mb: {peak}", file=sys.stderr)


def _run_guided(name: str, runs: int, seed: int) -> None:
    """Let atheris choose the inputs. Does not return."""
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # installed only where there is a wheel of it

    with atheris.instrument_imports(include=_INSTRUMENTED):
        from .fuzz_targets import TARGETS

    target = TARGETS[name]()
    corpus = Path("corpus")
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
    Path("words").write_text("".join(f'"{word}"\n' for word in escaped))
    arguments = [
        sys.argv[0],
        "corpus",
        *["-dict=words"][: len(target.words)],
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={_LONGEST}",
        "-len_control=0",
        f"-timeout={_MOST_SECONDS}",
        f"-rss_limit_mb={_MOST_MEGABYTES}",
        f"-artifact_prefix=crash-{name}-",
        "-print_final_stats=1",
    ]
    atheris.Setup(arguments, target.check)
    atheris.Fuzz()


def _child(name: str, *, runs: int, seed: int, plain: bool, findings: Path) -> _Outcome:
    """Fuzz one target in a process of its own, in a folder that is gone afterwards but for what was found."""
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "reliability.fuzz", name, "--child", "--runs", str(runs), "--seed", str(seed)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        began = time.monotonic()
        done = subprocess.run(
            command + ["--plain"] * plain,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        seconds = time.monotonic() - began
        said = done.stdout.decode("utf-8", "replace")
        finding = None
        if done.returncode:
            kept = sorted(Path(folder).glob("crash-*"))
            finding = findings / (kept[0].name if kept else f"{name}.log")
            finding.write_bytes(kept[0].read_bytes() if kept else done.stdout)
            print(f"{name} FAILED:\n{said[-3000:]}", file=sys.stderr)
    inputs = re.findall(r"number_of_executed_units:\s*([0-9]+)", said)
    coverage = re.findall(r"\bcov: ([0-9]+)", said)
    peak = re.findall(r"peak_rss_mb:\s*([0-9]+)", said)
    return _Outcome(
        name,
        int(inputs[-1]) if inputs else 0,
        seconds,
        coverage[-1] if coverage else "-",
        peak[-1] if peak else "-",
        finding,
    )


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line; return 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m reliability.fuzz", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("targets", metavar="TARGET", nargs="*", help="all by default")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, help="at random by default")
    parser.add_argument("--plain", action="store_true", help="without atheris, also where it is installed")
    parser.add_argument("--input", type=Path, help="check one file, with one target")
    parser.add_argument("--findings", type=Path, default=Path.cwd(), help="the folder for inputs that failed")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1, 2**31)
    plain = given.plain or importlib.util.find_spec("atheris") is None
    if given.child:
        (_run_plain if plain else _run_guided)(given.targets[0], given.runs, seed)
        return 0

    from .fuzz_targets import TARGETS

    unknown = sorted(set(given.targets) - set(TARGETS))
    if unknown or (given.input and len(given.targets) != 1):
        parser.error(f"expected one of the targets {', '.join(TARGETS)}")
    if given.input:
        TARGETS[given.targets[0]]().check(given.input.read_bytes())
        return 0
    print(f"make fuzz ARGS='--seed {seed}', {'mutations at random' if plain else 'guided by coverage (atheris)'}")
    print(f"{'target':14}{'inputs':>10}{'per second':>12}{'edges':>8}{'MiB':>6}", flush=True)
    found = total = 0
    for name in given.targets or TARGETS:
        outcome = _child(name, runs=given.runs, seed=seed, plain=plain, findings=given.findings)
        total += outcome.inputs
        found += outcome.finding is not None
        speed = f"{outcome.inputs / outcome.seconds:,.0f}"
        row = f"{name:14}{outcome.inputs:>10,}{speed:>12}{outcome.coverage:>8}{outcome.megabytes:>6}"
        print(row + (f"  FOUND, see {outcome.finding}" if outcome.finding else ""), flush=True)
    print(f"{total:,} inputs, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
