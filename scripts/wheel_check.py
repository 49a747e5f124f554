"""Build the distribution, look inside, and try the wheel with each extra alone in a fresh environment.

    python scripts/wheel_check.py

Every environment gets the wheel and what the extra asks for, nothing else, and runs ``smoke.py`` and a strict
type check of a consumer's program there, away from the source tree.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import List, Set

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "claude_force_cache": ROOT / "claude_force_cache",
    "claude_force_orchestrator": ROOT / "claude_force_orchestrator",
    "claude_force_backends": ROOT / "backends" / "claude_force_backends",
}
SHARED = {"share/claude-force-cache/stdlib-review": ROOT / "examples" / "stdlib-review"}
EXTRAS = ("base", "disk", "redis", "memcached", "orchestrator", "testing", "demo", "all")
IN_SDIST = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "PKG-INFO")

CONSUMER = """
import asyncio

from claude_force_cache import MISSING, Cache, open_cache


async def main() -> str:
    cache: Cache[object]
    async with open_cache("memory://") as cache:
        await cache.set("question", "answer")
        found = await cache.get("question")
    return "" if found is MISSING else str(found)


print(asyncio.run(main()))
"""


def run(*command: object, cwd: Path) -> str:
    """Return what the command prints; its whole output is the error if it fails."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        words = " ".join(str(word) for word in command)
        raise SystemExit(f"error: {words} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"error: {message}")


def build(folder: Path) -> Path:
    """Return the wheel, which is made out of the sdist, so that the sdist is known to be complete."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    check_wheel(wheel)
    check_sdist(sdist)
    for path in (wheel, sdist):
        print(f"built {path.name}, {path.stat().st_size:,} bytes")
    return wheel


def check_wheel(wheel: Path) -> None:
    """Hold the wheel against the source tree: the three packages, the demonstration's project, nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    data = "-".join(wheel.name.split("-")[:2]) + ".data/data"
    wanted: Set[str] = set()
    for target, folder in {**PACKAGES, **{f"{data}/{target}": folder for target, folder in SHARED.items()}}.items():
        files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        wanted.update(f"{target}/{path.relative_to(folder).as_posix()}" for path in files)
    for package in PACKAGES:
        expect(f"{package}/py.typed" in names, f"{wheel.name} has no {package}/py.typed")
    expect(any(name.endswith("/prices.json") for name in names), f"{wheel.name} has no prices.json")
    expect(not wanted - names, f"{wheel.name} lacks {sorted(wanted - names)}")
    expect(not names - wanted, f"{wheel.name} has files of no package: {sorted(names - wanted)}")


def check_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in IN_SDIST if name not in names]
    expect(not missing, f"{sdist.name} lacks {missing}")
    expect(any(name.startswith("tests/") for name in names), f"{sdist.name} has no tests")
    stray = [name for name in names if name.startswith(".") and name != ".gitignore"]
    expect(not stray, f"{sdist.name} has files that are nobody's business: {stray}")


def check_extra(extra: str, wheel: Path, wheels: Path, folder: Path) -> str:
    """Return one line on how the wheel did with this extra alone."""
    began = time.perf_counter()
    home = folder / extra
    # Linked, not copied: a copy that one thread writes while another forks is "busy", and does not start.
    venv.create(home / "venv", symlinks=True)
    python = home / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    target = str(wheel) if extra == "base" else f"{wheel}[{extra}]"
    run(*pip, "install", "-qq", "--no-index", "--find-links", wheels, target, cwd=home)
    run(*pip, "check", cwd=home)
    # Isolated mode keeps the source tree and the user's site out of sight.
    said = run(python, "-I", ROOT / "scripts" / "smoke.py", extra, cwd=home)
    (home / "consumer.py").write_text(CONSUMER, encoding="utf-8")
    expect(run(python, "consumer.py", cwd=home) == "answer\n", f"the consumer's program fails with {extra}")
    mypy = (sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--cache-dir", os.devnull)
    run(*mypy, "--config-file", os.devnull, "--python-executable", python, "consumer.py", cwd=home)
    return f"{extra:13} ok {time.perf_counter() - began:5.1f} s  {said.strip().splitlines()[-1]}"


def main() -> None:
    began = time.perf_counter()
    failed: List[str] = []
    with tempfile.TemporaryDirectory(prefix="wheel-check-") as name:
        folder = Path(name)
        wheels = folder / "wheels"
        wheel = build(folder)
        # One visit to the index for all; the environments then install out of this folder.
        run(sys.executable, "-m", "pip", "wheel", "-qq", "--wheel-dir", wheels, f"{wheel}[all]", cwd=folder)

        def attempt(extra: str) -> None:
            try:
                print(check_extra(extra, wheel, wheels, folder), flush=True)
            except SystemExit as error:
                failed.append(extra)
                print(f"{extra:13} FAILED\n{error}", flush=True)

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            list(pool.map(attempt, EXTRAS))
    print(f"{len(EXTRAS) - len(failed)} of {len(EXTRAS)} ok in {time.perf_counter() - began:.0f} s")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
