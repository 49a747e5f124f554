"""Workflows: steps that agents do one after another or side by side, as claude.json defines them."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import AbstractSet, Any, Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence, Tuple

from ._condition import KEYWORDS, Condition
from ._errors import InvalidTaskError, OrchestratorError, WorkflowError
from ._project import Project
from ._validation import check_max_tokens, check_model, check_temperature, is_agent_name, kind_of

__all__ = ["Step", "Workflow"]

_MOST_STEPS = 500
_LONGEST_TEMPLATE = 100_000
_TASK = "task"
_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_KEYS = frozenset({"id", "agent", "needs", "inputs", "task", "when", "model", "max_tokens", "temperature"})


@dataclass(frozen=True)
class Step:
    """A step of a workflow.

    :param id: its name in the workflow: letters, digits, ``-`` and ``_``.
    :param agent: the agent that does it.
    :param needs: the steps that have to end before it. Unless ``when`` asks about their state, they have to succeed.
    :param inputs: those of them whose outputs it is given, as data.
    :param task: what the agent is asked: ``{{task}}`` stands for the workflow's task, ``{{ID}}`` for a mention of
        the output of the input ID.
    :param when: the condition under which it runs, or None.
    :param model: the model that it asks, or None.
    :param max_tokens: the limit of its answer in tokens, or None.
    :param temperature: its temperature, or None.
    """

    id: str
    agent: str
    needs: Tuple[str, ...] = ()
    inputs: Tuple[str, ...] = ()
    task: str = "{{task}}"
    when: Optional[Condition] = None
    model: Optional[str] = None
    max_tokens: Optional[int] = None
    temperature: Optional[float] = None

    def render(self, task: str, given: AbstractSet[str]) -> str:
        """Return what the agent is asked. What the workflow's task says in double braces stays as it is.

        :param task: the workflow's task.
        :param given: the inputs that there are.
        """

        def fill(match: re.Match[str]) -> str:
            name = match[1].strip()
            if name == _TASK:
                return task
            return f'the data from "{name}"' if name in given else f'the data from "{name}", of which there is none'

        return _PLACEHOLDER.sub(fill, self.task)


@dataclass(frozen=True)
class Workflow:
    """A workflow whose definition is sound.

    :param name: its name.
    :param steps: its steps, each after all that it needs, otherwise in the definition's order.
    :param description: what it is for.
    """

    name: str
    steps: Tuple[Step, ...]
    description: str = ""

    @classmethod
    def parse(cls, name: str, definition: object) -> Workflow:
        """Return the workflow that a definition in the format of claude.json describes.

        That is a list of agents, each of which is given what the one before it said; or a list of steps; or an
        object with such a list as ``steps``, and a ``description``.

        :raises WorkflowError: if it describes none.
        """
        if not isinstance(name, str) or not name or len(name) > 128 or not name.isprintable():
            raise WorkflowError(f"a workflow's name is 1 to 128 printable characters, which {name!r:.80} is not")
        where = f"workflow {name!r}"
        description = ""
        if isinstance(definition, Mapping):
            _refuse_unknown(where, definition, {"steps", "description"})
            description = definition.get("description", "")
            if not isinstance(description, str):
                raise WorkflowError(f"{where}: 'description' must be text, not {kind_of(description)}")
            definition = definition.get("steps")
        if not isinstance(definition, (list, tuple)) or not definition:
            found = "an empty one" if definition in ([], ()) else kind_of(definition)
            raise WorkflowError(f"{where} must be a list of agents or of steps, not {found}")
        if len(definition) > _MOST_STEPS:
            raise WorkflowError(f"{where} has {len(definition):,} steps, the limit is {_MOST_STEPS}")
        if all(isinstance(item, str) for item in definition):
            return cls(name, _sequence(where, definition), description)
        return cls(name, _graph(where, definition), description)

    def check_agents(self, project: Project) -> None:
        """Accept a workflow all whose agents the project has.

        :raises WorkflowError: if one is missing.
        """
        for step in self.steps:
            try:
                project.agent(step.agent)
            except OrchestratorError as error:
                raise WorkflowError(f"workflow {self.name!r}, step {step.id!r}: {error}") from None

    @classmethod
    def of_project(cls, project: Project, name: str) -> Workflow:
        """Return a workflow of a project.

        :raises WorkflowError: if there is none of this name, its definition is not sound, or an agent is missing.
        """
        if not isinstance(name, str) or name not in project.workflows:
            raise WorkflowError(_unknown("workflow", name, project.workflows, "claude.json"))
        try:
            workflow = cls.parse(name, project.workflows[name])
            workflow.check_agents(project)
        except WorkflowError as error:
            raise WorkflowError(f"{project.path}: {error}") from None
        return workflow


def _sequence(where: str, agents: Sequence[str]) -> Tuple[Step, ...]:
    steps: List[Step] = []
    taken: Dict[str, int] = {}
    for agent in agents:
        _check_agent(where, agent)
        before = tuple(step.id for step in steps[-1:])
        steps.append(Step(_free(agent, taken), agent, before, before))
    return tuple(steps)


def _free(agent: str, taken: Dict[str, int]) -> str:
    """Return an id that no step has yet: the agent's name, with a number from the second time on."""
    number = taken.get(agent, 0) + 1
    taken[agent] = number
    name = agent if number == 1 else f"{agent}-{number}"
    if name != agent and name in taken:
        return _free(agent, taken)
    taken.setdefault(name, 1)
    return name


def _graph(where: str, items: Sequence[object]) -> Tuple[Step, ...]:
    steps: Dict[str, Step] = {}
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            raise WorkflowError(f"{where}, step {number} must be an object like the other steps, not {kind_of(item)}")
        step = _read_step(f"{where}, step {number}", item)
        if step.id in steps:
            raise WorkflowError(f"{where} has two steps {step.id!r}: give one of them another 'id'")
        steps[step.id] = step
    for step in steps.values():
        for need in step.needs:
            if need not in steps:
                raise WorkflowError(f"{where}, step {step.id!r}: needs: {_unknown('step', need, steps, 'it')}")
    return _in_order(where, steps)


def _read_step(place: str, item: Mapping[str, Any]) -> Step:
    agent = item.get("agent")
    if not isinstance(agent, str):
        raise WorkflowError(f"{place}: 'agent' must be the name of an agent, not {kind_of(agent)}")
    identifier = item.get("id", agent)
    if not isinstance(identifier, str) or not is_agent_name(identifier):
        raise WorkflowError(f"{place}: an 'id' consists of letters, digits, - and _, which {identifier!r:.80} does not")
    where = f"{place.rpartition(' ')[0]} {identifier!r}"
    if identifier in KEYWORDS or identifier == _TASK:
        raise WorkflowError(f"{where}: {identifier!r} has a meaning of its own; give the step another 'id'")
    _check_agent(where, agent)
    _refuse_unknown(where, item, _KEYS)
    needs = _read_names(where, "needs", item.get("needs", ()))
    inputs = _read_names(where, "inputs", item.get("inputs", needs))
    for name in inputs:
        if name not in needs:
            raise WorkflowError(f"{where}: the input {name!r} must be one of its 'needs' as well")
    when = _read_condition(where, item.get("when"), needs)
    task = item.get("task", "{{task}}")
    _check_template(where, task, inputs)
    try:
        model = None if item.get("model") is None else check_model(item["model"])
        max_tokens = None if item.get("max_tokens") is None else check_max_tokens(item["max_tokens"])
        temperature = check_temperature(item.get("temperature"))
    except InvalidTaskError as error:
        raise WorkflowError(f"{where}: {error}") from None
    return Step(identifier, agent, needs, inputs, task, when, model, max_tokens, temperature)


def _read_names(where: str, key: str, value: object) -> Tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise WorkflowError(f"{where}: {key!r} must be a list of steps, not {kind_of(value)}")
    names = tuple(value)
    if len(set(names)) < len(names):
        raise WorkflowError(f"{where}: {key!r} names a step twice")
    return names


def _read_condition(where: str, text: object, needs: Sequence[str]) -> Optional[Condition]:
    if text is None:
        return None
    if not isinstance(text, str):
        raise WorkflowError(f"{where}: 'when' must be a condition as text, not {kind_of(text)}")
    try:
        condition = Condition(text)
    except WorkflowError as error:
        raise WorkflowError(f"{where}: {error}") from None
    for name in sorted(condition.steps - set(needs)):
        raise WorkflowError(f"{where}: its condition asks about {name!r}, which must be one of its 'needs' as well")
    return condition


def _check_template(where: str, task: object, inputs: Sequence[str]) -> None:
    if not isinstance(task, str) or not task.strip():
        raise WorkflowError(f"{where}: 'task' must be text, not {kind_of(task)}")
    if len(task) > _LONGEST_TEMPLATE:
        raise WorkflowError(f"{where}: its task has more than {_LONGEST_TEMPLATE:,} characters; shorten it")
    for match in _PLACEHOLDER.finditer(task):
        name = match[1].strip()
        if name != _TASK and name not in inputs:
            known = " or ".join(f"{{{{{name}}}}}" for name in (_TASK, *inputs))
            raise WorkflowError(f"{where}: {match[0]!r:.60} in its task stands for nothing; write {known}")


def _check_agent(where: str, agent: str) -> None:
    if not is_agent_name(agent):
        raise WorkflowError(f"{where}: an agent's name consists of letters, digits, - and _, not {agent!r:.80}")


def _refuse_unknown(where: str, table: Mapping[str, object], known: Iterable[str]) -> None:
    known = frozenset(known)
    for key in table:
        if key not in known:
            raise WorkflowError(f"{where}: {_unknown('key', key, known, 'its definition')}")


def _unknown(what: str, name: object, known: Iterable[str], place: str) -> str:
    listed = sorted(known)
    near = difflib.get_close_matches(str(name), listed, n=3)
    if near:
        return f"there is no {what} {name!r:.80}; did you mean {' or '.join(map(repr, near))}?"
    if not listed:
        return f"there is no {what} {name!r:.80}: {place} has none"
    shown = ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")
    return f"there is no {what} {name!r:.80}; {place} has {shown}"


def _in_order(where: str, steps: Mapping[str, Step]) -> Tuple[Step, ...]:
    """Return the steps, each after all that it needs.

    :raises WorkflowError: if some need each other.
    """
    ordered: Dict[str, Step] = {}
    left = dict(steps)
    while left:
        ready = next((step for step in left.values() if all(need in ordered for need in step.needs)), None)
        if ready is None:
            raise WorkflowError(f"{where}: these steps wait for each other: {' -> '.join(_cycle(left))}")
        ordered[ready.id] = left.pop(ready.id)
    return tuple(ordered.values())


def _cycle(left: Mapping[str, Step]) -> List[str]:
    """Return a cycle among steps of which each needs another one of them."""
    path: List[str] = []
    seen: FrozenSet[str] = frozenset()
    name = next(iter(left))
    while name not in seen:
        path.append(name)
        seen |= {name}
        name = next(need for need in left[name].needs if need in left)
    return [*path[path.index(name) :], name]
