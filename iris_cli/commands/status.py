"""`iris status`: where a run or a folder of predictions stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iris_cli.commands._options import Json, Quiet, Verbose, Workspace
from iris_cli.commands._output import Output
from iris_cli.commands._running import leave_with
from iris_cli.execution.outcomes import DATA
from iris_cli.execution.progress import duration

if TYPE_CHECKING:
    from iris_cli.workflows.status import OutputStatus, RunStatus

_CASES_SHOWN = 50


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("status")(status)


def status(
    folder: Annotated[str, typer.Argument(help="A run by name or folder, or an output folder.")],
    workspace: Workspace = Path(),
    exit_code: Annotated[
        bool,
        typer.Option(
            "--exit-code",
            help="Run: 0 finished or running, 75 to be gone on with, else what it failed with (6 "
            "diverged). Predictions: 75 where cases wait and nobody works, 3 where some failed, 0.",
        ),
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Say where a training run or a folder of predictions stands, and what to do next.

    Example: iris status my-run --exit-code; [ $? -eq 75 ] && sbatch train.sh
    """
    from iris_cli.workflows.run_folder import run_folder
    from iris_cli.workflows.status import RunStatus
    from iris_cli.workflows.status import status as read_status

    out = Output.choose(as_json, verbose, quiet)
    found = read_status(run_folder(folder, workspace))
    out.result(found.to_json())
    lines = _run_lines(found) if isinstance(found, RunStatus) else _output_lines(found)
    for line in lines:
        out.line(line)
    if exit_code:
        leave_with(found.exit_code)


def _run_lines(run: RunStatus) -> list[str]:
    lines = [f"{run.folder.name}: {run.state} ({run.why})"]
    pace = f"step {run.step} of {run.steps}"
    if run.eta_s:
        pace += f", {run.last['step_s']:.2g} s a step, {duration(run.eta_s)} of work left"
    lines.append(pace)
    if run.last:
        shown = {"loss": run.last.get("loss"), "Dice": run.last.get("dice"), **_kinds(run)}
        texts = [f"{name} {value:.3f}" for name, value in shown.items() if value is not None]
        lines.append(f"last report: {', '.join(texts)}; {run.last.get('skipped', 0)} steps skipped")
    lines += _validation_lines(run)
    for checkpoint in run.checkpoints:
        state = "damaged" if checkpoint.step is None else f"step {checkpoint.step}, verified"
        lines.append(f"{checkpoint.name}: {state}, {duration(checkpoint.age_s)} old")
    return [*lines, f"next: {run.next}"]


def _kinds(run: RunStatus) -> dict[str, float]:
    return {f"Dice of {kind}": dice for kind, dice in run.last.get("dice_of", {}).items()}


def _validation_lines(run: RunStatus) -> list[str]:
    if run.validation is None:
        return []
    from iris_cli.commands._panel import validation_lines

    return validation_lines(*run.validation)


def _output_lines(output: OutputStatus) -> list[str]:
    counts = {
        "done": len(output.done),
        "failed": len(output.failed),
        "without their label map": len(output.incomplete),
        "in work": len(output.working),
        "waiting": len(output.waiting),
    }
    told = ", ".join(f"{n} {what}" for what, n in counts.items() if n or what in ("done", "failed"))
    lines = [f"{output.folder}: {told}"]
    for work in output.working[:_CASES_SHOWN]:
        age = "" if work.age_s is None else f", for {duration(work.age_s)}"
        lines.append(f"in work: {work.case}: process {work.pid} on {work.host}{age}")
    for case, error in list(output.failed.items())[:_CASES_SHOWN]:
        lines.append(f"failed: {case}: {error.get('problem', 'no reason is known')}")
        lines += [
            f"  {part:<9} {error[part]}" for part in ("file", "found", "fix") if error.get(part)
        ]
    if len(output.failed) > _CASES_SHOWN:
        lines.append(f"and {len(output.failed) - _CASES_SHOWN} more")
    if any(error.get("exit_code") == DATA for error in output.failed.values()):
        lines.append("next: correct the files named above, then run the same line again")
    elif output.failed or output.incomplete or (output.waiting and not output.working):
        lines.append("next: run the same line of iris predict again; it does what is missing")
    return lines
