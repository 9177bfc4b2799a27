"""Who looks on while a run trains: what they are told, and the two records every run keeps.

The loop knows observers and nothing of files, panels or pictures. It calls them in the process that
writes the run folder (rank 0) alone; nothing they do can change a weight.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from iris_cli.files.publish import environment_problem
from iris_cli.training.log import METRICS, TENSORBOARD, drop_lines_after, finite, iter_numbers

if TYPE_CHECKING:
    from iris_cli.training.batches import Batch
    from iris_cli.training.episodes import Episode


@dataclass(frozen=True)
class StepReport:
    """Where a run stands: means over the steps since the report before, unless said otherwise.

    step: finished steps, of `steps`. loss, dice, grad_norm: None where no step had a finite one.
    dice_of: Dice by kind of episode. skipped: steps without an update since the run began.
    step_s: seconds a step takes, waiting included; wait_share: part of it spent waiting for
    episodes. seconds: spent in steps since the run began. eta_s: left at this pace.
    memory_bytes: resident now in this process; device_memory_bytes: most that was ever allocated
    on the device, None on a CPU.
    """

    step: int
    steps: int
    loss: float | None
    dice: float | None
    dice_of: Mapping[str, float]
    lr: float
    grad_norm: float | None
    skipped: int
    step_s: float
    wait_share: float
    seconds: float
    eta_s: float
    memory_bytes: int | None = None
    device_memory_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values only, what is not finite as None."""
        content: dict[str, Any] = finite(asdict(self))
        return content


class Observer(Protocol):
    """Looks on; by default at nothing. Derive from it and write what is to be seen."""

    def begin(self, step: int) -> None:
        """The run begins, or goes on, after so many finished steps."""
        return

    def step(self, report: StepReport) -> None:
        """Every `training.log_every` steps, and after the last one."""
        return

    def episodes(
        self, step: int, episodes: Sequence[Episode], batch: Batch, logits: torch.Tensor
    ) -> None:
        """After step 1 and every `training.sheet_every` steps: the episodes of one batch.

        logits: (B, K, P, P, P), classes padded as in `batch`; what the network said before the
        update of the step.
        """
        return

    def validation(self, step: int, figures: Mapping[str, Any]) -> None:
        """After every validation: what `validate` returned, and the `seconds` it took."""
        return

    def close(self) -> None:
        """The run ends, for whatever reason."""
        return


class MetricsLog(Observer):
    """`metrics.jsonl`: one JSON object per line, appended and flushed.

    A line has `step` and either the fields of a `StepReport` or, under `validation`, the figures
    of one validation.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """step: steps that are finished; later lines, of a run that was killed, are dropped."""
        self.path = folder / METRICS
        drop_lines_after(self.path, step)

    def step(self, report: StepReport) -> None:
        self._append(report.to_json())

    def validation(self, step: int, figures: Mapping[str, Any]) -> None:
        self._append({"step": step, "validation": finite(figures)})

    def _append(self, line: Mapping[str, Any]) -> None:
        with _writing(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


class TensorBoard(Observer):
    """The numbers of `metrics.jsonl` as TensorBoard shows them."""

    def __init__(self, folder: Path, step: int) -> None:
        """step: steps that are finished; what was recorded after them is hidden."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._folder = folder / TENSORBOARD
        with _writing(self._folder):
            self._board: Any = SummaryWriter(str(self._folder), purge_step=step + 1)

    def step(self, report: StepReport) -> None:
        line = report.to_json()
        for name in ("step", "steps"):
            del line[name]
        self._add(report.step, line)

    def validation(self, step: int, figures: Mapping[str, Any]) -> None:
        self._add(step, {"validation": figures})

    def close(self) -> None:
        with _writing(self._folder):
            self._board.close()

    def _add(self, step: int, numbers: Mapping[str, Any]) -> None:
        with _writing(self._folder):
            for name, value in iter_numbers(numbers):
                self._board.add_scalar(name, value, step)


def records(folder: Path, step: int) -> tuple[Observer, ...]:
    """The records of a run of which `step` steps are finished."""
    return MetricsLog(folder, step), TensorBoard(folder, step)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk, or a folder that was made read-only, in words: the records are not optional."""
    try:
        yield
    except OSError as error:
        problem = environment_problem(path, error)
        if problem is None:
            raise
        raise problem from error


def memory_in_use(device: torch.device) -> tuple[int | None, int | None]:
    """Bytes resident in this process now, and the most that was allocated on the device.

    None where the system does not tell, or the device is a CPU.
    """
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return _resident_bytes(), peak


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
