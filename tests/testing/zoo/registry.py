"""The register of the mutants: which checks have to catch each, and in how few steps they must explain it."""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Tuple, Type, TypeVar, Union

from claude_force_cache import Backend, SyncBackend

__all__ = ["MUTANTS", "Mutant", "caught_by"]

AnyBackend = Union[Backend, SyncBackend]
_Class = TypeVar("_Class", bound=Type[AnyBackend])


class Mutant(NamedTuple):
    """A backend with one defect.

    :param backend: the class; its name and docstring say what is wrong with it.
    :param checks: the checks of the kit that name the defect, or its consequence; each has to catch it.
    :param steps: how many steps their examples may have at most.
    """

    backend: Type[AnyBackend]
    checks: Tuple[str, ...]
    steps: int


MUTANTS: List[Mutant] = []


def caught_by(*checks: str, steps: int = 7) -> Callable[[_Class], _Class]:
    """Enter the decorated class in the register."""

    def register(backend: _Class) -> _Class:
        MUTANTS.append(Mutant(backend, checks, steps))
        return backend

    return register
