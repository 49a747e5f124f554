"""Two correct backends, and many that are wrong in one way each, to prove that the conformance kit can fail.

``reference`` holds the correct ones: small, slow and obviously right. Each other module holds mutants of
them, grouped by the rule of the contract that they break; ``registry`` knows them all.
"""

from . import account, contents, life, lifecycle, limit, sharing, versions, waiting
from .reference import DictBackend, SQLiteBackend
from .registry import MUTANTS, Mutant

__all__ = [
    "MUTANTS",
    "DictBackend",
    "Mutant",
    "SQLiteBackend",
    "account",
    "contents",
    "life",
    "lifecycle",
    "limit",
    "sharing",
    "versions",
    "waiting",
]
