"""A run folder: where it is, and the names of what this room keeps in it."""

from __future__ import annotations

from pathlib import Path

from iris_cli.model.card import CARD_FILE

RUNS, RUN_PLAN, MANIFEST, MODEL = "runs", "plan.json", "manifest.json", "model"


def run_folder(run: str | Path, workspace: Path) -> Path:
    """The folder a run name or path means."""
    path = Path(run)
    return path if len(path.parts) > 1 or path.is_dir() else workspace / RUNS / path


def has_model(folder: Path) -> bool:
    """Whether the run has written its model; its card is the last that is written."""
    return (folder / MODEL / CARD_FILE).is_file()
