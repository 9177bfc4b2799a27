"""Pictures of a run while it trains: observers that draw with `report`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iris_cli.errors import Interrupted, Stopped
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

_LOG = logging.getLogger(__name__)


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
        shown = [_row(episode, logits[b]) for b, episode in enumerate(episodes[:ROWS])]
        self._folder.mkdir(parents=True, exist_ok=True)
        draw_sheet(self._folder / f"step-{step:06d}.png", f"{self._title}, step {step}", shown)
        for old in sorted(self._folder.glob("step-*.png"), key=_step_of)[: -self._kept]:
            old.unlink(missing_ok=True)


class Expendable(Observer):
    """Passes everything on to an observer until it fails; then the run goes on without it.

    A picture that cannot be drawn, or a terminal that is gone, is no reason to end a training.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer: Observer | None = observer

    def begin(self, step: int) -> None:
        self._tell(lambda observer: observer.begin(step))

    def step(self, report: StepReport) -> None:
        self._tell(lambda observer: observer.step(report))

    def episodes(
        self, step: int, episodes: Sequence[Episode], batch: Batch, logits: torch.Tensor
    ) -> None:
        self._tell(lambda observer: observer.episodes(step, episodes, batch, logits))

    def validation(self, step: int, figures: Mapping[str, Any]) -> None:
        self._tell(lambda observer: observer.validation(step, figures))

    def close(self) -> None:
        self._tell(lambda observer: observer.close())

    def _tell(self, say: Callable[[Observer], None]) -> None:
        if self._observer is None:
            return
        try:
            say(self._observer)
        except (Stopped, Interrupted):
            raise
        except Exception as error:  # whatever a drawing library may raise
            failed, self._observer = self._observer, None
            _LOG.warning("%s failed and is left out: %s", type(failed).__name__, error)
            with contextlib.suppress(Exception):
                failed.close()


def pictures(folder: Path) -> tuple[Observer, ...]:
    """The pictures of the run in a folder."""
    return ProgressPicture(folder), ContactSheets(folder)


def _step_of(path: Path) -> int:
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def _row(episode: Episode, logits: torch.Tensor) -> SheetRow:
    """The axial slices of query and reference that show most of the episode's largest target.

    logits: (K, P, P, P), K possibly padded. Seldom a class is lost in the warp of every reference;
    then the first one is shown.
    """
    annotated = _array(episode.query_valid)
    truth = _array(episode.query_masks) & annotated[:, None, None, None]
    predicted = _array(logits[: len(episode.names)] > 0)
    target = truth if truth.any() else predicted
    largest = int(np.argmax(target.sum(axis=(1, 2, 3))))
    # The first of those that show the class, or of all of them.
    n = int(np.argmax(_array(episode.reference_valid)[:, largest]))
    masks = _array(episode.reference_masks[n])
    at, there = _fullest_slice(target[largest]), _fullest_slice(masks[largest])
    dice = _dice(truth, predicted, _array(episode.counted))
    return SheetRow(
        title=f"{episode.kind}: {episode.source}\nreference {n + 1} of {len(episode.references)}",
        classes=tuple(
            SheetClass(name, float(dice[i]) if annotated[i] else None)
            for i, name in enumerate(episode.names)
        ),
        reference=_array(episode.references[n, there]),
        reference_masks=masks[:, there],
        query=_array(episode.query[at]),
        truth=truth[:, at],
        prediction=predicted[:, at],
    )


def _array(x: torch.Tensor) -> npt.NDArray[Any]:
    return x.detach().cpu().numpy()


def _fullest_slice(mask: Masks) -> int:
    """The axial slice with most voxels; the middle one where there is none."""
    counts = mask.sum(axis=(1, 2))
    return int(np.argmax(counts)) if counts.any() else len(mask) // 2


def _dice(truth: Masks, predicted: Masks, counted: Masks) -> npt.NDArray[np.float64]:
    """Dice of each class over the voxels of the patch that count; 1 where both are empty."""
    truth, predicted = truth & counted, predicted & counted
    axes = (1, 2, 3)
    total = truth.sum(axis=axes) + predicted.sum(axis=axes)
    both = 2.0 * (truth & predicted).sum(axis=axes)
    dice = np.ones(len(truth))
    np.divide(both, total, out=dice, where=total > 0)
    return dice
