"""Pictures of a run while it trains: observers that draw with `report`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iris_cli.report.curves import draw_progress
from iris_cli.report.sheet import SheetClass, SheetRow, draw_sheet
from iris_cli.training.batches import Batch
from iris_cli.training.episodes import Episode
from iris_cli.training.log import METRICS
from iris_cli.training.observers import Observer, StepReport

PROGRESS = "progress.png"
PROGRESS_EVERY_S = 300.0
SHEETS = "sheets"
SHEETS_KEPT = 20
ROWS = 4

Masks = npt.NDArray[np.bool_]


class ProgressPicture(Observer):
    """`progress.png` of a run, drawn from its log: after validations, at the end, in between."""

    def __init__(self, folder: Path, *, every_s: float = PROGRESS_EVERY_S) -> None:
        self._metrics, self._picture = folder / METRICS, folder / PROGRESS
        self._every_s = every_s
        self._drawn = time.monotonic()

    def step(self, report: StepReport) -> None:
        if time.monotonic() - self._drawn >= self._every_s:
            self._draw()

    def validation(self, step: int, figures: Mapping[str, Any]) -> None:
        self._draw()

    def close(self) -> None:
        self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if self._metrics.exists():
            draw_progress(self._metrics, self._picture)


class ContactSheets(Observer):
    """`sheets/step-000500.png` of a run: the first episodes of a step, the last sheets kept."""

    def __init__(self, folder: Path, *, kept: int = SHEETS_KEPT) -> None:
        self._folder = folder / SHEETS
        self._title = folder.resolve().name
        self._kept = kept

    def episodes(
        self, step: int, episodes: Sequence[Episode], batch: Batch, logits: torch.Tensor
    ) -> None:
        shown = [_row(b, episode, batch, logits) for b, episode in enumerate(episodes[:ROWS])]
        self._folder.mkdir(parents=True, exist_ok=True)
        draw_sheet(self._folder / f"step-{step:06d}.png", f"{self._title}, step {step}", shown)
        for old in sorted(self._folder.glob("step-*.png"), key=_step_of)[: -self._kept]:
            old.unlink(missing_ok=True)


def pictures(folder: Path) -> tuple[Observer, ...]:
    """The pictures of the run in a folder."""
    return ProgressPicture(folder), ContactSheets(folder)


def _step_of(path: Path) -> int:
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def _row(b: int, episode: Episode, batch: Batch, logits: torch.Tensor) -> SheetRow:
    """The axial slices of query and reference that show most of the episode's largest target."""
    k = len(episode.names)
    annotated = _array(batch.loss_valid[b, :k])
    truth = _array(batch.query_masks[b, :k]) & annotated[:, None, None, None]
    predicted = _array(logits[b, :k] > 0)
    target = truth if truth.any() else predicted
    largest = int(np.argmax(target.sum(axis=(1, 2, 3))))
    # Every class is learned from one reference of its episode at least.
    own = torch.nonzero(batch.share[b].any(dim=1))[:, 0].tolist()
    n = next(n for n in own if batch.share[b, n, largest] > 0)
    masks = _array(batch.reference_masks[n, :k])
    at, there = _fullest_slice(target[largest]), _fullest_slice(masks[largest])
    dice = _dice(truth, predicted)
    return SheetRow(
        title=f"{episode.kind}: {episode.source}\nreference {own.index(n) + 1} of {len(own)}",
        classes=tuple(
            SheetClass(name, float(dice[i]) if annotated[i] else None)
            for i, name in enumerate(episode.names)
        ),
        reference=_array(batch.references[n, 0, there]),
        reference_masks=masks[:, there],
        query=_array(batch.query[b, 0, at]),
        truth=truth[:, at],
        prediction=predicted[:, at],
    )


def _array(x: torch.Tensor) -> npt.NDArray[Any]:
    return x.detach().cpu().numpy()


def _fullest_slice(mask: Masks) -> int:
    """The axial slice with most voxels; the middle one where there is none."""
    counts = mask.sum(axis=(1, 2))
    return int(np.argmax(counts)) if counts.any() else len(mask) // 2


def _dice(truth: Masks, predicted: Masks) -> npt.NDArray[np.float64]:
    """Dice of each class over the patch; 1 where both are empty."""
    axes = (1, 2, 3)
    total = truth.sum(axis=axes) + predicted.sum(axis=axes)
    both = 2.0 * (truth & predicted).sum(axis=axes)
    dice = np.ones(len(truth))
    np.divide(both, total, out=dice, where=total > 0)
    return dice
