"""The conformance kit: proves that a backend keeps the contract.

A backend's author derives :class:`BackendConformance` in a test file of pytest's; :func:`check_backend` and
``claude-force conformance URL`` run the same checks without pytest. Needs the extra ``testing``.
"""

from __future__ import annotations

# isort: off
from . import (  # noqa: F401 - each adds its checks, which run in this order
    _sizes,
    _values,
    _versions,
    _lives,
    _evictions,
    _namespaces,
    _lifecycle,
    _promises,
    _corruption,
    _concurrency,
    _cancellation,
    _waiting,
    _processes,
    _machine,
)

# isort: on
from ._checks import CHECKS, Check
from ._clock import ManualClock
from ._failure import ConformanceError
from ._report import CheckResult, Report, check_backend
from ._suite import BackendConformance
from ._url import suite_of_url

__all__ = [
    "CHECKS",
    "BackendConformance",
    "Check",
    "CheckResult",
    "ConformanceError",
    "ManualClock",
    "Report",
    "check_backend",
    "suite_of_url",
]
