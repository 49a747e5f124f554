"""Print the path of the oldest or the newest supported Python on this machine.

    python scripts/find_python.py oldest|newest|3.9

Looks on the path and among pyenv's versions; the classifiers in pyproject.toml say which are supported.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

Version = Tuple[int, int]

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
PROBE = "import ensurepip, sys, venv; print(*sys.version_info[:2])"


def supported() -> List[Version]:
    classifiers = re.findall(r"Python :: 3\.(\d+)\"", PYPROJECT.read_text(encoding="utf-8"))
    return [(3, int(minor)) for minor in classifiers]


def candidates() -> Iterator[str]:
    for major, minor in supported():
        found = shutil.which(f"python{major}.{minor}")
        if found:
            yield found
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob("versions/*/bin/python")))
    yield sys.executable


def interpreters() -> Dict[Version, str]:
    """Return the first interpreter of each version that works; a shim of pyenv may be there and not work."""
    found: Dict[Version, str] = {}
    for path in candidates():
        probe = subprocess.run([path, "-c", PROBE], capture_output=True, check=False)
        if probe.returncode == 0:
            major, minor = map(int, probe.stdout.split())
            found.setdefault((major, minor), path)
    return {version: found[version] for version in supported() if version in found}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    wanted = sys.argv[1]
    found = interpreters()
    names = {f"{major}.{minor}": path for (major, minor), path in found.items()}
    if found:
        names.update(oldest=found[min(found)], newest=found[max(found)])
    if wanted not in names:
        sys.exit(f"error: no Python {wanted} on this machine, which has {', '.join(names) or 'none of ours'}")
    print(names[wanted])


if __name__ == "__main__":
    main()
