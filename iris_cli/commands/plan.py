"""`iris plan`: integrity, fingerprint, splits, plan, with every reason printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iris_cli.commands._findings import finding_lines, show_findings
from iris_cli.commands._options import (
    CaseTimeout,
    Device,
    Json,
    Quiet,
    Verbose,
    Workers,
    Workspace,
    parse_bytes,
)
from iris_cli.commands._output import Output
from iris_cli.commands._running import progress_of
from iris_cli.commands._wrapping import entry, wrapped
from iris_cli.execution.signals import StopRequest

if TYPE_CHECKING:
    from iris_cli.planning.adapt import Budget
    from iris_cli.planning.plan import Plan
    from iris_cli.workflows.plan import PlanReport

NAMES_SHOWN = 12


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("plan")(plan)


def plan(
    sets: Annotated[
        list[str] | None, typer.Argument(help="Raw sets by name or folder; none means all.")
    ] = None,
    workspace: Workspace = Path(),
    name: Annotated[str, typer.Option(help="Name of the plan.")] = "default",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it here.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Network size: tiny (tests), small (laptop), base (paper); default the recipe's."
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help="Episodes, augmentation, optimiser: robust (small), paper (base)."),
    ] = "robust",
    hold_out: Annotated[
        list[str] | None, typer.Option(help="A set never to train on; may be repeated.")
    ] = None,
    validate_on: Annotated[
        list[str] | None,
        typer.Option(help="A set that only validation opens, for curves of an unseen set."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, as training.steps=1000.")
    ] = None,
    adapt: Annotated[
        bool,
        typer.Option(
            "--adapt", help="Fit network, patch and spacing to the sets, in place of a preset."
        ),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(help="--adapt to a step of at most this memory of the device, as 8G."),
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(min=0.01, help="--adapt to so many hours of training on this machine."),
    ] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split by subject.")] = 0,
    accept: Annotated[
        list[str] | None,
        typer.Option(help="Code of a finding that is meant, as sides-swapped; may be repeated."),
    ] = None,
    repair: Annotated[
        Path | None,
        typer.Option(help="Write label maps with flipped axes anew into this folder."),
    ] = None,
    workers: Workers = 0,
    case_timeout: CaseTimeout = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check raw data sets and write the plan of a training run.

    Example: iris plan Dataset004_Hippocampus Dataset009_Spleen --preset small

    Example: iris plan --adapt --memory 8G --hours 4
    """
    from iris_cli.workflows.plan import plan as make_plan

    out = Output.choose(as_json, verbose, quiet)
    with StopRequest() as stop, show_findings(out, repair):
        report = make_plan(
            sets or (),
            workspace=workspace,
            output=output,
            name=name,
            preset_name=preset,
            recipe_name=recipe,
            held_out_sets=hold_out or (),
            validation_sets=validate_on or (),
            overrides=overrides or (),
            seed=seed,
            accept=accept or (),
            workers=workers,
            case_timeout_s=case_timeout,
            repair=repair,
            budget=_budget(device, memory, hours) if adapt or memory or hours else None,
            progress=progress_of(out),
            stop=stop,
        )
    out.result(report.to_json())
    for line in plan_lines(report):
        out.line(line)
    out.say(f"wrote {report.path}; next: iris preprocess -w {workspace}")


def _budget(device: str, memory: str | None, hours: float | None) -> Budget:
    from iris_cli.planning.adapt import Budget
    from iris_cli.workflows.devices import choose_device

    # Time is measured on the device; memory is only counted, for one that may be elsewhere.
    there = choose_device(device) if device == "auto" or hours is not None else device
    kind: Literal["cpu", "cuda"] = "cuda" if there.startswith("cuda") else "cpu"
    return Budget(kind, None if memory is None else parse_bytes(memory), hours)


def plan_lines(report: PlanReport) -> list[str]:
    """Everything that was decided, with its reason, and found: at most 80 columns where it can."""
    reasons = _reasons_by_set(report.plan)
    lines: list[str] = []
    for name in report.plan.sets:
        lines += [*_set_lines(report.plan, name, reasons.pop(name)), ""]
    made = report.plan
    lines.append(f"plan {made.name} (preset {made.preset}, recipe {made.recipe})")
    lines += [line for key, why in reasons[""].items() for line in entry(key, why)]
    findings = finding_lines(report.integrity)
    return [*lines, *(["", *findings] if findings else []), "", *_memory_lines(report)]


def _reasons_by_set(plan: Plan) -> dict[str, dict[str, str]]:
    """Reasons of every set by what follows `sets.<name>.`, and all others under an empty name."""
    grouped: dict[str, dict[str, str]] = {name: {} for name in ("", *plan.sets)}
    for key, why in plan.reasons.items():
        # The longest: names of sets may hold dots themselves.
        owners = [name for name in plan.sets if key.startswith(f"sets.{name}.")]
        owner = max(owners, key=len, default="")
        grouped[owner][key.removeprefix(f"sets.{owner}.") if owner else key] = why
    return grouped


def _set_lines(plan: Plan, name: str, reasons: Mapping[str, str]) -> list[str]:
    planned = plan.sets[name]
    found = planned.fingerprint
    roles = ("train", planned.train), ("validate", planned.validate_), ("test", planned.test)
    counted = [*roles, ("unlabelled", planned.unlabelled)]
    native = " x ".join(f"{s:.4g}" for s in found.spacing_mm_median)
    shape = " x ".join(f"{n:.0f}" for n in found.shape_median)
    classes = list(planned.classes)
    more = f" and {len(classes) - NAMES_SHOWN} more" if len(classes) > NAMES_SHOWN else ""
    facts = {
        "modality": ", ".join(f"{c.name}: {c.modality}" for c in planned.channels),
        "cases": ", ".join(f"{len(cases)} {role}" for role, cases in counted),
        "classes": f"{len(classes)}"
        + (f": {', '.join(classes[:NAMES_SHOWN])}{more}" if classes else ""),
        "native": f"{native} mm, {shape} voxels (medians; z, y, x)",
        "working": f"{planned.spacing_mm:.4g} mm, isotropic",
    }
    lines = [f"set {name}"]
    lines += [line for key, text in facts.items() for line in entry(key, text)]
    lines.append("  because")
    return lines + [line for key, why in reasons.items() for line in entry(key, why, indent=4)]


def _memory_lines(report: PlanReport) -> list[str]:
    cpu, cuda = report.estimate, report.estimate_cuda
    lines = wrapped(
        f"memory of a training step ({cpu.parameters / 1e6:.3g} M parameters): {cpu.text()}; "
        f"{cuda.text()}",
        indent=0,
    )
    training = report.plan.training
    less = []
    if training.accumulation < training.batch:
        less.append(f"--set training.accumulation={training.batch}")
    if not training.recompute:
        less.append("--set training.recompute=true")
    if less:
        lines += wrapped(f"to take less: {' '.join(less)}", indent=2)
    return lines + wrapped(
        f"memory of iris preprocess: at most {report.preprocess_bytes / 2**30:.2g} GiB for each "
        "worker",
        indent=0,
    )
