"""``claude-force workflow``: several agents on one task, one after another and side by side."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

import typer

from ._annotated import Annotated
from ._console import console, note, print_json, print_table
from ._failure import report
from ._options import (
    CacheOption,
    ConfigOption,
    DeadlineOption,
    JSONOption,
    MaxAgeOption,
    MaxConcurrentOption,
    MaxTokensOption,
    MaxUSDOption,
    MemoryOption,
    ModelOption,
    NoCacheOption,
    NoStoreOption,
    OnlyIfCachedOption,
    OnSuspicionOption,
    StaleIfErrorOption,
    StaleWhileRevalidateOption,
    TagOption,
    TaskArgument,
    TemperatureOption,
    TimeoutOption,
    TTLOption,
    cache_mode,
    given,
)

if TYPE_CHECKING:
    from .._orchestrator import AsyncAgentOrchestrator
    from .._project import Project
    from .._workflow import Step, Workflow
    from .._workflow_run import StepResult, WorkflowResult
    from ._tree import _Progress

__all__ = ["workflow_app"]

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name of a workflow in claude.json.")]

workflow_app = typer.Typer(help="Let several agents work on one task.")


@workflow_app.command("list")
def list_workflows(config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """List the project's workflows, and what is wrong with those that cannot be run."""
    from .._errors import WorkflowError
    from .._workflow import Workflow

    project = _project(config)
    rows: List[Dict[str, Any]] = []
    for name in project.workflows:
        row: Dict[str, Any] = {"name": name, "steps": 0, "agents": [], "description": "", "error": None}
        try:
            workflow = Workflow.of_project(project, name)
            row.update(
                steps=len(workflow.steps),
                agents=list(dict.fromkeys(step.agent for step in workflow.steps)),
                description=workflow.description,
            )
        except WorkflowError as error:
            row["error"] = str(error)
        rows.append(row)
    if as_json:
        print_json(rows)
    elif rows:
        print_table(
            ("workflow", "steps", "agents", "what it is for"),
            [
                (row["name"], str(row["steps"] or "-"), ", ".join(row["agents"]), row["error"] or row["description"])
                for row in rows
            ],
            numeric=("steps",),
        )
    else:
        note(f"{project.path} has no workflows")


@workflow_app.command("show")
def show(name: NameArgument, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """Show the steps of a workflow: who does them, what they wait for, and on what condition."""
    from .._workflow import Workflow

    workflow = Workflow.of_project(_project(config), name)
    if as_json:
        print_json(
            {
                "name": workflow.name,
                "description": workflow.description,
                "steps": [_step_row(step) for step in workflow.steps],
            }
        )
        return
    from ._tree import draw, rows_of

    cells = {step.id: _described(step) for step in workflow.steps}
    console().print(draw(workflow.name, rows_of(workflow), cells))
    if workflow.description:
        sys.stdout.write(f"\n{workflow.description}\n")


@workflow_app.command("run")
def run_workflow(
    name: NameArgument,
    task: TaskArgument,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 4096,
    temperature: TemperatureOption = None,
    max_concurrent: MaxConcurrentOption = 10,
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    no_store: NoStoreOption = False,
    only_if_cached: OnlyIfCachedOption = False,
    ttl_hours: TTLOption = None,
    max_age_hours: MaxAgeOption = None,
    stale_while_revalidate_hours: StaleWhileRevalidateOption = None,
    stale_if_error_hours: StaleIfErrorOption = None,
    tag: TagOption = None,
    memory: MemoryOption = None,
    on_suspicion: OnSuspicionOption = "report",
    config: ConfigOption = None,
    timeout: TimeoutOption = None,
    deadline: DeadlineOption = None,
    max_usd: MaxUSDOption = None,
    as_json: JSONOption = False,
) -> None:
    """Run a workflow, and print the answer of its last step.

    Run it again after a failure: what is cached is not asked again. The model, the limit and the temperature are for
    steps that have none of their own.
    """
    from .._workflow import Workflow
    from ._execution import make_orchestrator
    from ._loop import GOES_ON, run_command
    from ._run import read_task
    from ._tree import live_tree

    mode = cache_mode(no_cache=no_cache, no_store=no_store, only_if_cached=only_if_cached)
    orchestrator = make_orchestrator(
        config,
        timeout=timeout,
        deadline_seconds=deadline,
        enable_memory=memory,
        cache=cache,
        max_concurrent=max_concurrent,
        on_suspicion=on_suspicion,
        max_usd=max_usd,
    )
    workflow = Workflow.of_project(orchestrator.project, name)
    for step in workflow.steps:
        # A missing file would fail its step after others are paid for.
        orchestrator.project.read_definition(step.agent)
    arguments = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "cache": mode,
        **given(
            ttl_hours=ttl_hours,
            max_age_hours=max_age_hours,
            stale_while_revalidate_hours=stale_while_revalidate_hours,
            stale_if_error_hours=stale_if_error_hours,
            tags=tag,
        ),
    }
    text = read_task(task)
    with live_tree(workflow, text) as tree:
        result = run_command(
            _run(orchestrator, workflow, text, tree, arguments),
            interrupted=GOES_ON,
        )
    _print(result, as_json=as_json)


async def _run(
    orchestrator: "AsyncAgentOrchestrator",
    workflow: "Workflow",
    task: str,
    tree: "_Progress",
    arguments: Dict[str, Any],
) -> "WorkflowResult":
    async with orchestrator:
        return await orchestrator.run_workflow(workflow, task, on_step=tree.update, **arguments)


def _print(result: "WorkflowResult", *, as_json: bool) -> None:
    from ._execution import exit_code

    note(_summary(result))
    if as_json:
        print_json(_result_row(result))
    elif result.success:
        sys.stdout.write(result.output if result.output.endswith("\n") else f"{result.output}\n")
    sys.stdout.flush()
    if not result.success:
        for error in result.errors:
            report(error)
        raise typer.Exit(max(exit_code(step.result) for step in result.steps if step.result is not None))


def _summary(result: "WorkflowResult") -> str:
    from ._execution import usd

    counts = ((state, result.count(state)) for state in ("done", "cached", "failed", "skipped"))
    ended = ", ".join(f"{count} {state}" for state, count in counts if count)
    money = f"{usd(result.usd_spent)} spent, {usd(result.usd_saved)} saved"
    if result.unknown_cost:
        money += f", {result.unknown_cost} at a price unknown"
    return f"{len(result.steps)} steps: {ended}; {money}; {result.execution_time_ms / 1000:.1f} s"


def _result_row(result: "WorkflowResult") -> Dict[str, object]:
    return {
        "workflow": result.workflow_name,
        "success": result.success,
        "output": result.output,
        "usd_spent": result.usd_spent,
        "usd_saved": result.usd_saved,
        "unknown_cost": result.unknown_cost,
        "execution_time_ms": result.execution_time_ms,
        "steps": [_step_result_row(step) for step in result.steps],
    }


def _step_result_row(step: "StepResult") -> Dict[str, object]:
    from ._execution import result_row

    row: Dict[str, object] = {"id": step.id, "agent": step.agent_name, "state": step.state, "reason": step.reason}
    found = {} if step.result is None else result_row(step.result)
    return {**row, **{name: found.get(name) for name in ("output", "errors", "metadata")}}


def _step_row(step: "Step") -> Dict[str, object]:
    return {
        "id": step.id,
        "agent": step.agent,
        "needs": list(step.needs),
        "inputs": list(step.inputs),
        "task": step.task,
        "when": None if step.when is None else step.when.text,
        "model": step.model,
        "max_tokens": step.max_tokens,
        "temperature": step.temperature,
    }


def _described(step: "Step") -> Tuple[str, ...]:
    about = [f"needs {', '.join(step.needs)}"] if step.needs else []
    if step.inputs != step.needs:
        about.append(f"is given {', '.join(step.inputs) or 'none of it'}")
    if step.when is not None:
        about.append(f"when {step.when.text}")
    if step.model is not None:
        about.append(f"asks {step.model}")
    task = "" if step.task == "{{task}}" else step.task
    return step.agent, "; ".join(about), task


def _project(config: ConfigOption) -> "Project":
    from .._project import Project
    from ._settings import DEFAULT_CONFIG

    return Project.load(config or DEFAULT_CONFIG)
