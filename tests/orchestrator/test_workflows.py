"""Workflows: what runs, what it is given, and what a second run still has to ask."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Set, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_orchestrator import (
    AgentResult,
    AsyncAgentOrchestrator,
    Context,
    ExecutionMetadata,
    InvalidTaskError,
    ProjectError,
    Step,
    StepResult,
    Workflow,
    WorkflowError,
    WorkflowResult,
)
from claude_force_orchestrator._workflow_run import run_steps
from claude_force_orchestrator.cli._tree import rows_of

TASK = "Review heapq."


@pytest.fixture
def agents(config: Path) -> Callable[..., None]:
    """Give the project these agents, each with a definition that begins with its name, and workflows."""

    def define(*names: str, **workflows: Any) -> None:
        table = json.loads(config.read_text(encoding="utf-8"))
        for name in names:
            table["agents"][name] = {"file": f"agents/{name}.md"}
            (config.parent / "agents" / f"{name}.md").write_text(f"{name} v1\n", encoding="utf-8")
        table["workflows"] = workflows
        config.write_text(json.dumps(table), encoding="utf-8")

    return define


def asked(body: Dict[str, Any]) -> Tuple[str, List[str], str]:
    """Return who is asked, the data that comes along, and the task."""
    agent = body["system"][0]["text"].split()[0]
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return agent, [], content
    return agent, [block["text"] for block in content[:-1]], content[-1]["text"]


def all_asked(api: Any) -> List[Tuple[str, List[str], str]]:
    return [asked(request["body"]) for request in api.requests]


def answer_by_prompt(body: Dict[str, Any]) -> str:
    """Return an answer that another prompt would not have got."""
    return f"{asked(body)[0]}: {hash(json.dumps([body['system'], body['messages']])) & 0xFFFFFFFF:x}"


def states(result: WorkflowResult) -> Dict[str, str]:
    return {step.id: step.state for step in result.steps}


def test_in_a_sequence_each_agent_is_given_what_the_one_before_it_said(run: Any, api: Any, agents: Any) -> None:
    agents("plan", "code", "check", chain=["plan", "code", "check"])
    api.says("the plan", "the code", "the verdict")
    result = run(lambda it: it.run_workflow("chain", TASK))
    assert (result.success, result.output, result.errors) == (True, "the verdict", ())
    assert states(result) == {"plan": "done", "code": "done", "check": "done"}
    first, second, third = all_asked(api)
    assert first == ("plan", [], TASK)
    assert (second[0], third[0]) == ("code", "check")
    assert re.fullmatch(r'<data-(\w{16}) kind="output" source="plan">\nthe plan\n</data-\1>\n\n', second[1][0])
    assert "the code" in third[1][0]
    assert len(third[1]) == 1
    assert second[2] == third[2] == TASK


def test_a_sequence_may_name_an_agent_twice(run: Any, api: Any, agents: Any) -> None:
    agents("code", "check", loop=["code", "check", "code", "check"])
    api.answers = answer_by_prompt
    result = run(lambda it: it.run_workflow("loop", TASK))
    assert [step.id for step in result.steps] == ["code", "check", "code-2", "check-2"]
    assert [agent for agent, _, _ in all_asked(api)] == ["code", "check", "code", "check"]


def test_a_sequence_stops_at_the_first_failure(run: Any, api: Any, agents: Any) -> None:
    agents("plan", "code", "check", chain=["plan", "code", "check"])
    api.says("the plan", 400)
    result = run(lambda it: it.run_workflow("chain", TASK))
    assert (result.success, result.output) == (False, "the plan")
    assert states(result) == {"plan": "done", "code": "failed", "check": "skipped"}
    assert result.step("check").reason == "code failed"
    assert len(result.errors) == 1
    assert result.errors[0].startswith("code: ")
    assert len(api.requests) == 2


def test_a_second_run_costs_nothing_and_says_what_it_saved(run: Any, api: Any, agents: Any) -> None:
    agents("plan", "code", chain=["plan", "code"])

    async def twice(it: AsyncAgentOrchestrator) -> None:
        first = await it.run_workflow("chain", TASK)
        again = await it.run_workflow("chain", TASK)
        assert states(again) == {"plan": "cached", "code": "cached"}
        assert again.output == first.output
        assert first.usd_spent > 0 == first.usd_saved
        assert (again.usd_spent, again.usd_saved) == (0, pytest.approx(first.usd_spent))
        assert (again.count("cached"), again.unknown_cost) == (2, 0)

    run(twice)
    assert len(api.requests) == 2


ELEVEN = [
    {"id": "scope", "agent": "a1"},
    {"id": "read", "agent": "a2", "needs": ["scope"]},
    {"id": "api", "agent": "a3", "needs": ["read"]},
    {"id": "types", "agent": "a4", "needs": ["read"]},
    {"id": "security", "agent": "a5", "needs": ["read"]},
    {"id": "tests", "agent": "a6", "needs": ["api", "types"]},
    {"id": "threats", "agent": "a7", "needs": ["security"]},
    {"id": "docs", "agent": "a8", "needs": ["api"]},
    {"id": "mend", "agent": "a9", "needs": ["tests", "threats"]},
    {"id": "notes", "agent": "a10", "needs": ["docs"]},
    {"id": "report", "agent": "a11", "needs": ["mend", "notes"], "task": "Report on {{mend}} and {{notes}}: {{task}}"},
]


@pytest.mark.parametrize(
    ("agent", "again"),
    [
        ("a11", {"report"}),
        ("a5", {"security", "threats", "mend", "report"}),
        ("a8", {"docs", "notes", "report"}),
        ("a1", {str(step["id"]) for step in ELEVEN}),
    ],
)
def test_of_eleven_steps_an_edited_agent_runs_its_own_again_and_those_that_depend_on_it(
    make: Any, api: Any, agents: Any, config: Path, tmp_path: Path, *, agent: str, again: Set[str]
) -> None:
    agents(*(f"a{number}" for number in range(1, 12)), eleven=ELEVEN)
    api.answers = answer_by_prompt

    async def one_run() -> WorkflowResult:
        # Each run is a process's own: what is remembered is what is on disk.
        async with make(cache=f"disk://{tmp_path}/answers") as it:
            result: WorkflowResult = await it.run_workflow("eleven", TASK)
            return result

    assert set(states(asyncio.run(one_run())).values()) == {"done"}
    assert len(api.requests) == 11
    assert set(states(asyncio.run(one_run())).values()) == {"cached"}
    assert len(api.requests) == 11
    (config.parent / "agents" / f"{agent}.md").write_text(f"{agent} v2\n", encoding="utf-8")
    changed = asyncio.run(one_run())
    assert {step.id for step in changed.steps if step.state == "done"} == again
    assert len(api.requests) == 11 + len(again)


def test_a_step_that_says_the_same_again_leaves_those_after_it_remembered(
    run: Any, api: Any, agents: Any, config: Path, make: Any
) -> None:
    agents("plan", "code", chain=["plan", "code"])
    it = make(cache=f"disk://{config.parent}/answers")
    run(lambda it: it.run_workflow("chain", TASK), it)
    (config.parent / "agents" / "plan.md").write_text("plan, in better words\n", encoding="utf-8")
    again = run(lambda it: it.run_workflow("chain", TASK), make(cache=f"disk://{config.parent}/answers"))
    assert states(again) == {"plan": "done", "code": "cached"}
    assert len(api.requests) == 3


def test_a_run_that_failed_goes_on_where_it_stopped(run: Any, api: Any, agents: Any, make: Any, tmp_path: Path) -> None:
    agents("plan", "code", "check", chain=["plan", "code", "check"])
    api.says("the plan", 400, "the code", "the verdict")
    failed = run(lambda it: it.run_workflow("chain", TASK), make(cache=f"disk://{tmp_path}/answers"))
    assert states(failed) == {"plan": "done", "code": "failed", "check": "skipped"}
    resumed = run(lambda it: it.run_workflow("chain", TASK), make(cache=f"disk://{tmp_path}/answers"))
    assert states(resumed) == {"plan": "cached", "code": "done", "check": "done"}
    assert len(api.requests) == 4


def test_what_may_not_be_remembered_is_asked_again(run: Any, api: Any, agents: Any, edit: Any) -> None:
    agents("plan", "code", "check", chain=["plan", "code", "check"])
    edit(cache={"exclude_agents": ["plan"]})
    api.says("the plan", "the code", 400, "the plan")

    async def twice(it: AsyncAgentOrchestrator) -> WorkflowResult:
        await it.run_workflow("chain", TASK)
        return await it.run_workflow("chain", TASK)

    # The plan came out the same, so the code is still what was asked for.
    assert states(run(twice)) == {"plan": "done", "code": "cached", "check": "done"}
    assert states(run(twice, cache="memory://", enable_cache=False)) == dict.fromkeys(("plan", "code", "check"), "done")


def test_branches_run_side_by_side_and_a_join_gets_all_outputs_in_its_own_order(
    run: Any, api: Any, agents: Any
) -> None:
    agents(
        "left",
        "right",
        "join",
        wide=[
            {"id": "l", "agent": "left"},
            {"id": "r", "agent": "right"},
            {"agent": "join", "needs": ["r", "l"], "task": "Compare {{ r }} with {{l}}.\n{{task}}"},
        ],
    )
    gate = threading.Event()
    together = threading.Barrier(2, gate.set)

    def answers(body: Dict[str, Any]) -> str:
        name = asked(body)[0]
        if name != "join":
            together.wait(20)  # neither is answered before both have come
        return f"says {name}"

    api.answers = answers
    result = run(lambda it: it.run_workflow("wide", "Braces {{r}} stay {{x}}."))
    assert result.success
    assert gate.is_set()
    agent, data, task = all_asked(api)[2]
    assert agent == "join"
    assert ["says right" in data[0], "says left" in data[1], len(data)] == [True, True, 2]
    assert task == 'Compare the data from "r" with the data from "l".\nBraces {{r}} stay {{x}}.'


def test_only_inputs_are_passed_on_and_another_need_leaves_the_answer_remembered(
    run: Any, api: Any, agents: Any, make: Any, config: Path
) -> None:
    agents(
        "gate",
        "work",
        gated=[
            {"id": "gate", "agent": "gate"},
            {"id": "work", "agent": "work", "needs": ["gate"], "inputs": [], "when": "gate matches 'GO*'"},
        ],
    )
    api.says("GO, I think", "worked", "GO at once", "Rather not")
    seen = []
    for version in range(3):
        (config.parent / "agents" / "gate.md").write_text(f"gate v{version}\n", encoding="utf-8")
        seen.append(run(lambda it: it.run_workflow("gated", TASK), make(cache=f"disk://{config.parent}/answers")))
    assert [states(result)["work"] for result in seen] == ["done", "cached", "skipped"]
    assert all_asked(api)[1] == ("work", [], TASK)
    assert len(api.requests) == 4


def test_a_condition_decides_between_two_ways(run: Any, api: Any, agents: Any) -> None:
    agents(
        "triage",
        "audit",
        "tidy",
        "sum-up",
        ways=[
            {"id": "triage", "agent": "triage"},
            {"id": "audit", "agent": "audit", "needs": ["triage"], "when": "triage contains 'RISK'"},
            {"id": "tidy", "agent": "tidy", "needs": ["triage"], "when": "not triage contains 'RISK'"},
            {"id": "end", "agent": "sum-up", "needs": ["audit", "tidy"], "when": "audit ended and tidy ended"},
        ],
    )
    api.says("RISK: eval", "audited", "summed up")
    result = run(lambda it: it.run_workflow("ways", TASK))
    assert states(result) == {"triage": "done", "audit": "done", "tidy": "skipped", "end": "done"}
    assert result.step("tidy").reason == "not so: not triage contains 'RISK'"
    assert (result.success, result.output) == (True, "summed up")
    (_, data, _) = all_asked(api)[2]
    assert len(data) == 1
    assert "audited" in data[0]


def test_a_failure_that_a_step_asks_about_and_makes_good_is_none_of_the_run(run: Any, api: Any, agents: Any) -> None:
    agents(
        "first",
        "second",
        "after",
        spare=[
            {"id": "first", "agent": "first"},
            {"id": "second", "agent": "second", "needs": ["first"], "when": "first failed"},
            {"id": "after", "agent": "after", "needs": ["first"]},
        ],
    )
    api.answers = lambda body: api.reply(status=400) if asked(body)[0] == "first" else "made good"
    result = run(lambda it: it.run_workflow("spare", TASK))
    assert states(result) == {"first": "failed", "second": "done", "after": "skipped"}
    assert (result.success, result.output) == (True, "made good")
    api.answers = lambda body: api.reply(status=400)
    result = run(lambda it: it.run_workflow("spare", TASK))
    assert states(result) == {"first": "failed", "second": "failed", "after": "skipped"}
    assert not result.success


def test_a_branch_goes_on_when_another_one_fails(run: Any, api: Any, agents: Any) -> None:
    agents(
        "bad",
        "good",
        "next",
        two=[{"agent": "bad"}, {"agent": "good"}, {"agent": "next", "needs": ["good"]}],
    )
    api.answers = lambda body: api.reply(status=400) if asked(body)[0] == "bad" else "fine"
    result = run(lambda it: it.run_workflow("two", TASK))
    assert states(result) == {"bad": "failed", "good": "done", "next": "done"}
    assert not result.success


def test_a_step_has_its_own_model_and_limit(run: Any, api: Any, agents: Any) -> None:
    agents(
        "plan",
        "code",
        own=[
            {"agent": "plan", "model": "claude-opus-5-5", "max_tokens": 77, "temperature": 0.5},
            {"agent": "code", "needs": ["plan"]},
        ],
    )
    run(lambda it: it.run_workflow("own", TASK, "claude-sonnet-5-5", max_tokens=99))
    plan, code = (request["body"] for request in api.requests)
    assert (plan["model"], plan["max_tokens"], plan["temperature"]) == ("claude-opus-5-5", 77, 0.5)
    assert (code["model"], code["max_tokens"]) == ("claude-sonnet-5-5", 99)
    assert "temperature" not in code


def test_options_hold_for_every_step_and_context_comes_before_the_outputs(run: Any, api: Any, agents: Any) -> None:
    agents("plan", "code", chain=["plan", "code"])
    notes = [Context("notes", "Use tabs.")]

    async def ask(it: AsyncAgentOrchestrator) -> WorkflowResult:
        await it.run_workflow("chain", TASK, context=notes, tags=["release-7"])
        assert await it.invalidate(workflow="chain") == 1
        await it.run_workflow("chain", TASK, context=notes, tags=["release-7"])
        assert await it.invalidate(tags=["release-7"]) == 1
        return await it.run_workflow("chain", TASK, cache="only-if-cached")

    assert states(run(ask)) == {"plan": "failed", "code": "skipped"}
    assert len(api.requests) == 4
    _, data, _ = all_asked(api)[1]
    assert ['kind="notes"' in data[0], 'kind="output"' in data[1]] == [True, True]


def test_metadata_names_the_workflow_and_the_place_in_it(run: Any, agents: Any) -> None:
    agents("plan", "code", chain=["plan", "code"])
    result = run(lambda it: it.run_workflow("chain", TASK))
    metadata = [step.result.metadata for step in result.steps]
    assert [(each.workflow_name, each.workflow_position) for each in metadata] == [("chain", 1), ("chain", 2)]


def test_each_change_is_told(run: Any, api: Any, agents: Any) -> None:
    agents("plan", "code", "check", chain=["plan", "code", "check"])
    api.says("the plan", 400)
    told: List[StepResult] = []
    run(lambda it: it.run_workflow("chain", TASK, on_step=told.append))
    assert [(step.id, step.state) for step in told] == [
        ("plan", "running"),
        ("plan", "done"),
        ("code", "running"),
        ("code", "failed"),
        ("check", "skipped"),
    ]
    assert told[1].output == "the plan"


def test_a_run_that_is_cancelled_cancels_its_steps(make: Any, api: Any, agents: Any) -> None:
    agents("left", "right", wide=[{"agent": "left"}, {"agent": "right"}])
    gate = threading.Event()
    api.default = api.reply(gate=gate)

    async def main() -> None:
        async with make() as it:
            running = asyncio.ensure_future(it.run_workflow("wide", TASK))
            await api.arrived(2)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert len(asyncio.all_tasks()) == 1

    try:
        asyncio.run(main())
    finally:
        gate.set()


def test_a_definition_may_be_given_in_code(run: Any, api: Any) -> None:
    workflow = Workflow.parse("mine", [{"agent": "code-reviewer"}, {"agent": "doc_writer", "needs": ["code-reviewer"]}])
    result = run(lambda it: it.run_workflow(workflow, TASK))
    assert (result.workflow_name, result.success, len(api.requests)) == ("mine", True, 2)
    stranger = Workflow.parse("mine", ["code-rewiever"])
    with pytest.raises(WorkflowError, match=r"'code-rewiever'; did you mean 'code-reviewer'\?"):
        run(lambda it: it.run_workflow(stranger, TASK))


def test_a_task_that_cannot_be_used_is_an_error_before_any_step(run: Any, api: Any) -> None:
    with pytest.raises(InvalidTaskError, match="blank"):
        run(lambda it: it.run_workflow("both", " "))
    with pytest.raises(WorkflowError, match="did you mean 'both'"):
        run(lambda it: it.run_workflow("bot", TASK))
    with pytest.raises(WorkflowError, match="there is no workflow None"):
        run(lambda it: it.run_workflow(None, TASK))
    assert api.requests == []


def test_the_agents_are_usable_when_a_workflow_is_not(run: Any, edit: Any) -> None:
    edit(workflows={"old": ["gone"], "odd": 7})
    assert run(lambda it: it.execute_agent("code-reviewer", TASK)).success
    with pytest.raises(WorkflowError, match=r"claude\.json: workflow 'old', step 'gone': there is no agent 'gone'"):
        run(lambda it: it.run_workflow("old", TASK))
    with pytest.raises(WorkflowError, match="'odd' must be a list of agents or of steps, not a number"):
        run(lambda it: it.run_workflow("odd", TASK))
    edit(workflows=["old"])
    with pytest.raises(ProjectError, match="'workflows' must be an object"):
        run(lambda it: it.run_workflow("old", TASK))


@st.composite
def graphs(draw: Any) -> List[Dict[str, Any]]:
    """Steps in any order, each of which needs some that come before it in another."""
    steps: List[Dict[str, Any]] = [{"id": "s0", "agent": "x"}]
    for number in range(1, draw(st.integers(1, 9))):
        needs = draw(st.lists(st.sampled_from([each["id"] for each in steps]), unique=True))
        steps.append({"id": f"s{number}", "agent": "x", "needs": needs})
    return list(draw(st.permutations(steps)))


@given(graphs(), st.sets(st.integers(0, 8)), st.randoms(use_true_random=False))
def test_every_step_of_any_graph_runs_once_after_what_it_needs_or_is_skipped(
    definition: List[Dict[str, Any]], failing: Set[int], random: Any
) -> None:
    workflow = Workflow.parse("any", definition)
    needs = {each.id: each.needs for each in workflow.steps}
    bad = {f"s{number}" for number in failing}
    expected: Dict[str, str] = {}
    for each in workflow.steps:
        fine = all(expected[need] == "done" for need in each.needs)
        expected[each.id] = ("failed" if each.id in bad else "done") if fine else "skipped"
    begun: List[str] = []
    ended: Set[str] = set()

    async def execute(number: int, each: Step, text: str, context: Tuple[Context, ...]) -> AgentResult:
        assert set(needs[each.id]) <= ended
        assert [piece.source for piece in context] == list(each.inputs)
        assert workflow.steps[number - 1] is each
        begun.append(each.id)
        for _ in range(random.randrange(4)):
            await asyncio.sleep(0)
        ended.add(each.id)
        metadata = ExecutionMetadata("m", 1, 1, 2, 0.0, False, None, 0.0, 0.0)
        good = each.id not in bad
        return AgentResult(each.agent, good, f"from {each.id}" if good else "", metadata, () if good else ("no",))

    told: List[Tuple[str, str]] = []
    result = asyncio.run(run_steps(workflow, TASK, execute, lambda each: told.append((each.id, each.state))))
    assert states(result) == expected
    assert len(begun) == len(set(begun))
    assert result.success is ("failed" not in expected.values())
    assert sorted(told) == sorted(
        [*expected.items(), *((name, "running") for name, state in expected.items() if state != "skipped")]
    )
    # The tree that people are shown has every step once, on a line below what it goes on from.
    assert sorted(row.step.id for row in rows_of(workflow)) == sorted(needs)


def step(**fields: Any) -> Dict[str, Any]:
    return {"agent": "x", **fields}


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ([], ["an empty one"]),
        ({}, ["null or absent"]),
        ({"steps": []}, ["an empty one"]),
        ({"step": ["x"]}, ["no key 'step'", "'steps'"]),
        ({"steps": ["x"], "description": 7}, ["'description'", "a number"]),
        (["x", step()], ["step 1", "must be an object like the other steps, not text"]),
        ([step(), 7], ["step 2", "a number"]),
        (["x y"], ["agent's name", "'x y'"]),
        ([step(agent=None)], ["step 1", "'agent'", "null"]),
        ([step(id="a b")], ["step 1", "'a b'"]),
        ([step(id="and")], ["'and'", "another 'id'"]),
        ([step(id="task")], ["'task'", "another 'id'"]),
        ([step(), step()], ["two steps 'x'"]),
        ([step(need=["y"])], ["step 'x'", "no key 'need'", "'needs'"]),
        ([step(needs="y")], ["'needs' must be a list", "text"]),
        ([step(id="alpha"), step(id="b", needs=["alpah"])], ["step 'b'", "needs", "'alpah'", "'alpha'"]),
        ([step(id="a"), step(id="b", needs=["a", "a"])], ["'needs' names a step twice"]),
        ([step(needs=["x"])], ["wait for each other: x -> x"]),
        (
            [step(id="a", needs=["c"]), step(id="b", needs=["a"]), step(id="c", needs=["b"]), step(id="d")],
            ["wait for each other: a -> c -> b -> a"],
        ),
        ([step(id="a"), step(id="b", inputs=["a"])], ["step 'b'", "input 'a'", "'needs'"]),
        ([step(id="a"), step(id="b", when="a failed")], ["step 'b'", "asks about 'a'", "'needs'"]),
        ([step(when="x y")], ["step 'x'", "malformed"]),
        ([step(when=["x failed"])], ["'when'", "a list"]),
        ([step(task=" ")], ["'task'"]),
        ([step(task="Do {{tsk}}.")], ["'{{tsk}}'", "stands for nothing", "{{task}}"]),
        ([step(id="a"), step(id="b", needs=["a"], inputs=[], task="{{a}}")], ["'{{a}}'"]),
        ([step(model="a b")], ["step 'x'", "model"]),
        ([step(max_tokens=0)], ["max_tokens"]),
        ([step(temperature=2)], ["temperature"]),
        (["x"] * 501, ["501 steps"]),
    ],
)
def test_a_definition_that_is_not_sound_is_refused_with_its_place(definition: object, words: List[str]) -> None:
    with pytest.raises(WorkflowError) as caught:
        Workflow.parse("mine", definition)
    message = str(caught.value)
    assert message.startswith("workflow 'mine'")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_steps_may_be_defined_in_any_order() -> None:
    workflow = Workflow.parse("mine", {"steps": [step(id="b", needs=["a"]), step(id="a")], "description": "Two."})
    assert [each.id for each in workflow.steps] == ["a", "b"]
    assert workflow.description == "Two."
    assert workflow.steps[1].inputs == ("a",)
