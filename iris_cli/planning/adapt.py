"""`iris plan --adapt`: network, patch and spacing fitted to the sets, the memory and the time.

Without it a plan is its preset: the universal rules of the paper. With it the largest network and
patch are taken that fit the memory and can be trained in the time; the spacing follows from the
classes and the patch, and the patch ends where the images do. Every choice says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from iris_cli.planning.estimate import estimate_step
from iris_cli.planning.fingerprint import SetFingerprint
from iris_cli.planning.presets import PRESETS, Preset
from iris_cli.planning.step_shape import Device, StepShape
from iris_cli.task.spacing import task_spacing
from iris_cli.training.settings import TrainingSettings

# Field of view of a patch in all presets: 128 voxels of 1.5 mm.
FIELD_MM = 192.0
# Network and patch, the best first: width helps before the finer spacing that a larger patch gives.
LADDER: tuple[tuple[str, int], ...] = (
    ("base", 128), ("base", 96), ("base", 64), ("small", 96), ("small", 64), ("tiny", 32),
)  # fmt: skip
# Edges of a voxel that differ by more than this: finer than the voxel's volume says nothing is
# gained along the coarse axis, and all of it is paid for.
ANISOTROPIC = 3.0
# With fewer steps than this part of the schedule a smaller network ends up better.
STEPS_SHARE_MIN = 0.25


@dataclass(frozen=True)
class Budget:
    """What a step may take (bytes of the device) and the training (hours); None: no limit."""

    device: Device
    memory_bytes: int | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Adapted:
    """A preset fitted to the sets, and key of the plan -> reason."""

    name: str
    preset: Preset
    reasons: dict[str, str]


def adapt(
    training: TrainingSettings, fingerprints: Mapping[str, SetFingerprint], budget: Budget
) -> Adapted:
    """The best step of the ladder that fits the budget; the last one where none does.

    training: of the recipe; its schedule is shortened where the hours are fewer, down to a quarter.
    """
    refused: dict[tuple[str, int], str] = {}
    for name, patch in LADDER:
        spacing, why_spacing = model_spacing(FIELD_MM / patch, patch, fingerprints)
        edge, why_patch = fitting_patch(name, patch, spacing, fingerprints)
        chosen = PRESETS[name].model_copy(
            update={"patch": edge, "s0": spacing, "training": training}
        )
        is_last = (name, patch) == LADDER[-1]
        if (name, edge) in refused:
            continue
        fitted = _within_memory(chosen, budget, is_last=is_last)
        if fitted is None:
            refused[name, edge] = f"{name} with patch {edge} takes more memory"
            continue
        chosen, why_memory = fitted
        timed = _within_hours(chosen, budget, is_last=is_last)
        if timed is None:
            refused[name, edge] = f"{name} with patch {edge} takes more time"
            continue
        chosen, why_time = timed
        reasons = {
            "network": "; ".join([f"{name}: {why_memory}", *refused.values()]),
            "s0": why_spacing,
        }
        return Adapted(name, chosen, {**reasons, "patch": why_patch, "training": why_time})
    raise AssertionError("the last step of the ladder is always taken")


def model_spacing(
    s0: float, patch: int, fingerprints: Mapping[str, SetFingerprint]
) -> tuple[float, str]:
    """Spacing (mm) of a model for these sets: the middle one of theirs, never coarser than s0."""
    wanted = {
        name: task_spacing(
            s0, patch, _finest_mm(found), found.extent_mm, min(_volumes(found))
        ).spacing_mm
        for name, found in fingerprints.items()
        if _volumes(found) and found.extent_mm > 0
    }
    if not wanted:
        return s0, f"{s0:.4g} mm: no set has labels, so the field of view is {FIELD_MM:g} mm"
    spacing = round(min(s0, median(wanted.values())), 4)
    each = ", ".join(f"{name} {mm:.3g}" for name, mm in sorted(wanted.items()))
    if spacing == s0:
        return s0, f"{s0:.4g} mm: a field of view of {FIELD_MM:g} mm; the sets ask for {each} mm"
    return spacing, f"{spacing:.4g} mm: the middle one of what the sets ask for ({each} mm)"


def fitting_patch(
    name: str, patch: int, spacing: float, fingerprints: Mapping[str, SetFingerprint]
) -> tuple[int, str]:
    """Edge of the patch (voxels): no longer than the longest image at this spacing."""
    multiple = PRESETS[name].network.size_multiple
    longest = max(
        max(n * mm for n, mm in zip(f.shape_median, f.spacing_mm_median, strict=True))
        for f in fingerprints.values()
    )
    needed = max(2 * multiple, math.ceil(longest / spacing / multiple) * multiple)
    if needed < patch:
        return needed, f"{needed} voxels hold the longest image ({longest:.3g} mm)"
    return patch, f"{patch} voxels of {spacing:.4g} mm: {patch * spacing:.4g} mm"


def _finest_mm(found: SetFingerprint) -> float:
    """Finest native spacing; of anisotropic sets the edge of a cube of the voxel's volume."""
    native = found.spacing_mm_median
    if max(native) > ANISOTROPIC * min(native):
        return math.prod(native) ** (1 / 3)
    return min(found.spacing_mm_min)


def _volumes(found: SetFingerprint) -> list[float]:
    return [c.volume_mm3 for c in found.classes.values() if c.volume_mm3 > 0]


def _within_memory(chosen: Preset, budget: Budget, *, is_last: bool) -> tuple[Preset, str] | None:
    """The preset with the settings that let it fit, or None."""
    for training, how in _leaner(chosen.training):
        estimate = estimate_step(_shape(chosen, training, budget.device))
        says = f"a step takes {estimate.text()}{how}"
        fits = budget.memory_bytes is None or estimate.total_bytes <= budget.memory_bytes
        if fits:
            limit = "" if budget.memory_bytes is None else f" of {budget.memory_bytes / 2**30:.3g}"
            return chosen.model_copy(update={"training": training}), says + limit
    if is_last:
        return chosen.model_copy(update={"training": training}), f"{says}: more than there is"
    return None


def _leaner(training: TrainingSettings) -> Iterator[tuple[TrainingSettings, str]]:
    """The settings as they are, then with ever less memory at the same result."""
    yield training, ""
    each = training.model_copy(update={"accumulation": training.batch})
    if training.accumulation < training.batch:
        yield each, ", episode by episode"
    if not training.recompute:
        yield each.model_copy(update={"recompute": True}), ", episode by episode and recomputing"


def _within_hours(chosen: Preset, budget: Budget, *, is_last: bool) -> tuple[Preset, str] | None:
    """The preset with the steps there is time for, or None where those are too few."""
    training = chosen.training
    if budget.hours is None:
        return chosen, f"schedule of {training.steps} steps of {training.batch} episodes"
    from iris_cli.planning.step_time import seconds_per_step

    seconds = seconds_per_step(_shape(chosen, training, budget.device), training.accumulation)
    possible = int(budget.hours * 3600 / seconds)
    says = f"a step takes about {seconds:.2g} s here, so {budget.hours:g} h are {possible} steps"
    if possible >= training.steps:
        return chosen, f"{training.steps} steps: {says}"
    if possible < STEPS_SHARE_MIN * training.steps and not is_last:
        return None
    fewer = _shortened(training, max(1, possible))
    return chosen.model_copy(update={"training": fewer}), f"{says}, instead of {training.steps}"


def _shortened(training: TrainingSettings, steps: int) -> TrainingSettings:
    """The same schedule in fewer steps: its warm-up takes the same part of them."""
    warmup = training.optimiser.warmup * steps // training.steps
    optimiser = training.optimiser.model_copy(update={"warmup": warmup})
    return training.model_copy(update={"steps": steps, "optimiser": optimiser})


def _shape(chosen: Preset, training: TrainingSettings, device: Device) -> StepShape:
    return StepShape(
        network=chosen.network,
        patch=chosen.patch,
        episodes=math.ceil(training.batch / training.accumulation),
        references=training.task.references_max,
        classes=training.task.classes_max,
        recompute=training.recompute,
        gradients=min(training.batch, training.accumulation) > 1,
        device=device,
        precision="bfloat16" if device == "cuda" else "float32",
    )
