"""The register of the mutants: which check has to catch each, and in how few steps it must be explained."""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Type, TypeVar, Union

from claude_force_cache import Backend, SyncBackend

__all__ = ["MUTANTS", "Mutant", "caught_by"]

AnyBackend = Union[Backend, SyncBackend]
_Class = TypeVar("_Class", bound=Type[AnyBackend])


class Mutant(NamedTuple):
    """A backend with one defect.

    :param backend: the class; its name and docstring say what is wrong with it.
    :param check: the check of the kit that names the defect.
    :param steps: how many steps the printed example may have at most, where the check is a state machine.
    """

    backend: Type[AnyBackend]
    check: str
    steps: int


MUTANTS: List[Mutant] = []


def caught_by(check: str, *, steps: int = 6) -> Callable[[_Class], _Class]:
    """Enter the decorated class in the register."""

    def register(backend: _Class) -> _Class:
        MUTANTS.append(Mutant(backend, check, steps))
        return backend

    return register
