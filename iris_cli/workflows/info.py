"""What a file or folder is, in the words of iris: volume, task, model, plan, receipt, data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.jsonl import read_json_lines
from iris_cli.files.schema import read_json

if TYPE_CHECKING:
    from iris_cli.model.bank import BankEntry
    from iris_cli.volume.reading import AssumedSpacing


@dataclass(frozen=True)
class Description:
    """Kind of the file, its facts by name (JSON values), and tables with a title."""

    kind: str
    path: Path
    facts: Mapping[str, Any]
    tables: Mapping[str, tuple[Mapping[str, Any], ...]]


def describe(path: Path, *, assume_spacing: AssumedSpacing = None) -> Description:
    """Recognise and describe a file or folder that iris reads or writes.

    assume_spacing: mm, for a volume that does not say where its voxels are.
    raises UsageError where it does not exist or is nothing iris knows, DataRefused where it is
    damaged.
    """
    from iris_cli.volume.reading import is_volume

    if not path.exists():
        raise UsageError("no such file or folder", file=path, fix="check the path")
    if path.is_dir():
        return _describe_folder(path)
    if is_volume(path):
        return _describe_volume(path, assume_spacing)
    if path.name.endswith(".task.pt"):
        return _describe_task(path)
    if path.suffix == ".pt":
        return _describe_checkpoint(path)
    if path.suffix == ".json":
        return _describe_json(path)
    if path.suffix == ".safetensors":
        return _describe_model(path)
    raise _unknown(path)


def _unknown(path: Path) -> UsageError:
    return UsageError(
        "not a file or folder iris knows",
        file=path,
        expected="a volume, .task.pt, model, checkpoint, plan, receipt, raw data set or run",
    )


def _describe_folder(path: Path) -> Description:
    if (path / "dataset.json").exists():
        return _describe_raw(path)
    if (path / "model.json").exists():
        return _describe_model(path)
    if (path / "plan.json").exists():
        return _describe_run(path)
    raise _unknown(path)


def _describe_volume(path: Path, assume_spacing: AssumedSpacing) -> Description:
    import numpy as np

    from iris_cli.volume.reading import read_class_names, read_image

    volume = read_image(path, assume_spacing=assume_spacing)
    stored = volume.native.grid
    finite = volume.array[np.isfinite(volume.array)]
    facts: dict[str, Any] = {
        "shape (x, y, z) as stored": list(stored.shape_xyz),
        "spacing (x, y, z) as stored, mm": [round(float(s), 6) for s in stored.spacing_xyz],
        "canonical shape (z, y, x)": list(volume.grid.shape_zyx),
        "affine to RAS+ mm": [[round(float(v), 6) for v in row] for row in stored.affine],
        "type": str(volume.array.dtype),
        "smallest and largest value": _range(finite),
        "not finite": int(volume.array.size - finite.size),
        "content hash": volume.content_hash(),
        "notes": list(volume.notes),
    }
    names = read_class_names(path)
    classes = tuple({"value": value, "class": name} for value, name in names.items())
    return Description("volume", path, facts, {"classes": classes} if classes else {})


def _range(values: Any) -> list[float] | None:
    return [float(values.min()), float(values.max())] if values.size else None


def _describe_task(path: Path) -> Description:
    from iris_cli.task.task_file import read_task

    task = read_task(path)
    header = task.header
    facts = {
        "model": f"{header.model.name} {header.model.version}",
        "model fingerprint": header.model.fingerprint,
        "profile": header.profile,
        "modality": header.modality,
        "channel": header.channel,
        "working spacing, mm": header.spacing_mm,
        "why": header.spacing_reason,
        "references": len(header.references),
        "from the memory bank": [f"{s.name}: {s.episodes} episodes" for s in header.bank],
        "licence": header.licence,
        "warnings": list(header.warnings),
        "fingerprint": task.fingerprint(),
    }
    classes = tuple(entry.model_dump(mode="json") for entry in header.classes)
    return Description("task", path, facts, {"classes": classes})


def _describe_model(path: Path) -> Description:
    from iris_cli.model.bank import load_bank
    from iris_cli.model.model import load_model

    model = load_model(path)
    bank = load_bank(path, model)
    facts = model.card.model_dump(mode="json")
    facts["parameters"] = sum(p.numel() for p in model.network.parameters())
    tables = {} if bank is None else {"memory bank": _bank_rows(bank.entries)}
    return Description("model", path, facts, tables)


def _bank_rows(entries: Sequence[BankEntry]) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {
            "class": entry.name,
            "episodes": entry.episodes,
            "modality": entry.modality or "both",
            "working spacing, mm": entry.spacing_mm,
            "licence": entry.licence or "not stated",
        }
        for entry in entries
    )


def _describe_checkpoint(path: Path) -> Description:
    from iris_cli.training.checkpoint import read_checkpoint

    state = read_checkpoint(path)
    facts = {
        "finished steps": state["step"],
        "score": state.get("score", state.get("best_score")),
        "parameters and buffers": sum(tensor.numel() for tensor in state["ema"].values()),
        "network": state["network"],
        "plan fingerprint": state["plan"],
        "data fingerprint": state["data"],
    }
    bank = state.get("bank")  # checkpoints of earlier versions have none
    tables = {} if bank is None else {"memory bank": _bank_of_checkpoint(path, bank)}
    return Description("checkpoint", path, facts, tables)


def _bank_of_checkpoint(path: Path, state: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Modality and spacing stand in the plan of the run, if it lies beside the checkpoint."""
    from iris_cli.planning.bank import bank_of_run
    from iris_cli.planning.plan import read_plan

    plan = path.parent / "plan.json"
    if plan.exists():
        return _bank_rows(bank_of_run(read_plan(plan), state).entries)
    counted = zip(state["names"], state["counts"], strict=True)
    return tuple({"class": name, "episodes": count} for name, count in counted)


def _describe_raw(path: Path) -> Description:
    from iris_cli.dataset.raw import read_raw_dataset

    raw = read_raw_dataset(path, strict=False)
    roles = [case.role for case in raw.cases]
    facts = {
        "name": raw.name,
        "channels": [f"{channel.index}: {channel.name}" for channel in raw.channels],
        "cases": len(raw.cases),
        "subjects": len({case.subject for case in raw.cases}),
        "roles": {role: roles.count(role) for role in sorted(set(roles))},
        "licence": raw.licence,
        "source": raw.source,
        "findings": [finding.message for finding in raw.findings],
    }
    classes = tuple({"class": item.name, "values": list(item.values)} for item in raw.classes)
    return Description("raw data set", path, facts, {"classes": classes})


def _describe_run(path: Path) -> Description:
    from iris_cli.planning.plan import read_plan

    plan = read_plan(path / "plan.json")
    facts = {
        "plan": plan.name,
        "sets": sorted(plan.sets),
        "steps planned": plan.training.steps,
        "last line of metrics.jsonl": _last_metrics(path / "metrics.jsonl"),
        "checkpoints": sorted(entry.name for entry in path.glob("checkpoint_*.pt")),
        "model": (path / "model").exists(),
    }
    return Description("run", path, facts, {})


def _last_metrics(path: Path) -> dict[str, Any] | None:
    """The last whole line: a live or killed run may have written a part of one after it."""
    lines = read_json_lines(path) if path.is_file() else []
    return lines[-1] if lines else None


def _describe_json(path: Path) -> Description:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataRefused("not a JSON object", file=path, found=type(content).__name__)
    known = str(content.get("format", ""))
    if known.startswith("iris-plan"):
        return _describe_plan(path)
    if path.name == "dataset.json":
        return _describe_raw(path.parent)
    if path.name == "model.json":
        return _describe_model(path.parent)
    if "content" in content and "run" in content:
        if not isinstance(content["content"], dict):
            raise DataRefused(
                "this receipt does not say what was done",
                file=path,
                found=f"content of type {type(content['content']).__name__}",
                expected="an object",
                fix="remove it; the next run makes the case and its receipt again",
            )
        facts = {**content["content"], "run": content["run"]}
        return Description("receipt", path, facts, {})
    raise _unknown(path)


def _describe_plan(path: Path) -> Description:
    from iris_cli.planning.plan import read_plan

    plan = read_plan(path)
    facts = {
        "name": plan.name,
        "preset": plan.preset,
        "recipe": plan.recipe,
        "patch": plan.patch,
        "s0, mm": plan.s0,
        "network": plan.network.model_dump(mode="json"),
        "steps": plan.training.steps,
        "batch": plan.training.batch,
        "reasons": dict(plan.reasons),
    }
    sets = tuple(
        {
            "set": name,
            "spacing_mm": item.spacing_mm,
            "classes": len(item.classes),
            "train": len(item.train),
            "validate": len(item.validate_),
            "unlabelled": len(item.unlabelled),
        }
        for name, item in plan.sets.items()
    )
    return Description("plan", path, facts, {"sets": sets})
