"""What the figures were measured on: processor, system and versions, and nothing that names the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import threading
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, Optional

__all__ = ["Waiting", "describe", "load", "resident_bytes"]

_LIBRARIES = (
    "claude-force-cache",
    "aiocache",
    "anthropic",
    "anyio",
    "cachebox",
    "cachetools",
    "cashews",
    "cryptography",
    "diskcache",
    "dogpile.cache",
    "langchain-community",
    "langchain-core",
    "litellm",
    "matplotlib",
    "pluggy",
    "pymemcache",
    "redis",
    "zstandard",
)


def describe(programs: Dict[str, Optional[str]]) -> Dict[str, Any]:
    """Return processor, cores, system, Python, and the versions of libraries and of ``programs`` (name to path)."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: _library(name) for name in _LIBRARIES},
        "servers": {name: _program(path) for name, path in programs.items()},
    }


def load() -> Optional[float]:
    """Return the load average of the last minute, or None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def resident_bytes() -> int:
    """Return how much memory of this process is resident, in bytes; its peak, where the system tells only that."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


class Waiting:
    """How long the thread that makes this was ready to run while the system ran something else."""

    def __init__(self) -> None:
        path = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._file = path.open(encoding="ascii") if path.exists() else None

    def seconds(self) -> float:
        """Return the sum since the thread began; always 0 where the system does not tell."""
        if self._file is None:
            return 0.0
        self._file.seek(0)
        return int(self._file.read().split()[1]) / 1e9

    def close(self) -> None:
        """Close the system's file."""
        if self._file is not None:
            self._file.close()


def _processor() -> str:
    try:
        lines: List[str] = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _library(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _program(path: Optional[str]) -> str:
    if path is None:
        return "not installed"
    said = subprocess.run([path, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False).stdout
    found = re.search(rb"\d+\.\d+(\.\d+)*", said)
    return found.group().decode() if found else "unknown"
