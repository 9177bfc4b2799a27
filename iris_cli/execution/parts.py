"""Which share of the cases a process takes, as it was told, or as its scheduler says.

A share saves looking at the cases of the others and nothing else: claims keep processes apart
whatever their shares are, so a number that is wrong costs time or leaves cases for later, and no
result depends on it. A scheduler is believed only where its variables give all that is needed;
where the number of jobs is not known, the process takes every case that no other one has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from iris_cli.errors import UsageError
from iris_cli.execution.outcomes import CaseJob, RunSummary

T = TypeVar("T")

# Slurm numbers steps that nobody counts from here on: batch script, interactive shell, extern.
_SPECIAL_STEPS = 0xFFFFFFF0


@dataclass(frozen=True)
class Part:
    """Every `count`-th case, beginning with number `index` (from 0). told_by: who said so.

    helps: when it is done, cases that no other process has or did are taken, too: the jobs of an
    array stop and are stopped, and then nobody else would do theirs.
    """

    index: int = 0
    count: int = 1
    told_by: str = ""
    helps: bool = False

    @property
    def is_whole(self) -> bool:
        return self.count == 1

    def of(self, cases: Sequence[T]) -> list[T]:
        """The share; `cases` has the same order in every process."""
        return list(cases[self.index :: self.count])

    def __str__(self) -> str:
        return f"part {self.index} of {self.count}, counted from 0 ({self.told_by})"

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {"part_id": self.index, "num_parts": self.count, "told_by": self.told_by or None}


WHOLE = Part()


@dataclass(frozen=True)
class Share:
    """What a process took of the cases of a job.

    cases: in its part. others: in other parts. helped: those of them that were taken here, too.
    missing: those of them that are not done so far. spared: cases of its part that had not failed
    and were left alone, None where that was not asked for.
    """

    part: Part
    cases: int
    others: int = 0
    helped: int = 0
    missing: int = 0
    spared: int | None = None

    def notes(self) -> list[str]:
        """What has to be said: nothing where the process takes everything of its own accord."""
        spared = f"{self.cases} cases had failed before; {self.spared} had not and were left alone"
        return [*self._part_notes(), *([] if self.spared is None else [spared])]

    def _part_notes(self) -> list[str]:
        if self.part.is_whole:
            return [f"every case is taken here: {self.part.told_by}"] if self.part.told_by else []
        helped = f", {self.helped} of them were left and taken here" if self.helped else ""
        return [
            f"{self.part}: {self.cases} cases; {self.others} belong to other parts{helped}, "
            f"{self.missing} of those are not done so far"
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            **self.part.to_json(),
            "cases": self.cases,
            "cases_of_other_parts": self.others,
            "of_those_taken_here": self.helped,
            "of_those_not_done": self.missing,
            "left_alone": self.spared or 0,
        }


@dataclass(frozen=True)
class Position:
    """Number of a job among those of its scheduler.

    count: how many there are, with numbers from 0; None where that cannot be told. id: its own
    number divided by the step of the numbers, wherever they begin: the same when a part of an array
    is sent again. jobs: how many there are, whatever their numbers; None where nobody says.
    """

    number: int
    count: int | None
    told_by: str
    id: int
    jobs: int | None = None


def choose_part(num_parts: int | None, part_id: int | None, environment: Mapping[str, str]) -> Part:
    """The share that the user asks for, else the one that a scheduler's variables tell.

    num_parts: with 1 every case is taken, whatever a scheduler says. part_id: from 0; by default
    from the scheduler.
    raises UsageError for numbers that do not fit, and for parts of which nobody says which one:
    of an array with another number of jobs, or with numbers that have gaps, too.
    """
    position = position_in(environment)
    if num_parts is None:
        if part_id is not None:
            raise UsageError(
                "--part-id says which part, and --num-parts of how many",
                found=f"--part-id {part_id} alone",
                fix=f"add --num-parts N, with N above {part_id}",
            )
        return _part_of(position)
    if num_parts < 1 or not 0 <= (part_id or 0) < num_parts:
        raise UsageError(
            "there is no such part",
            found=f"--num-parts {num_parts}" + ("" if part_id is None else f" --part-id {part_id}"),
            expected="at least one part, and a --part-id from 0 to one less than their number",
        )
    if num_parts == 1:
        return WHOLE
    if part_id is not None:
        return Part(part_id, num_parts, "--part-id")
    if position is None:
        raise UsageError(
            "which of the parts is this one?",
            found=f"--num-parts {num_parts}, and no job array or task of a scheduler",
            fix=f"add --part-id I, with I from 0 to {num_parts - 1}",
        )
    if position.jobs is not None and position.count != num_parts:
        regular = "" if position.count is not None else ", whose numbers do not follow one another"
        raise UsageError(
            "which of the parts is this one?",
            found=f"--num-parts {num_parts}, and {position.told_by} is one of {position.jobs} jobs"
            + regular,
            expected=f"{num_parts} jobs with numbers that follow one another",
            fix=f"add --part-id I, with I from 0 to {num_parts - 1}; where {num_parts} jobs with "
            f"these numbers were sent before, it was {position.id % num_parts} for this one",
        )
    # The remainder is right wherever an array begins: N numbers in a row have N remainders. Numbers
    # with gaps (PBS: -J 0-6:2) have not, and nobody says so: what such jobs leave is taken, too.
    return Part(position.id % num_parts, num_parts, position.told_by, helps=True)


def run_part(
    jobs: Sequence[CaseJob],
    part: Part,
    run: Callable[[Sequence[CaseJob], bool], RunSummary],
    *,
    is_done: Callable[[CaseJob], bool],
    failed: Callable[[], Mapping[str, object]],
    only_failed: bool = False,
) -> tuple[RunSummary, Share]:
    """Run the cases of a part, and where it helps those that the others left.

    run: `run_cases`; the second value is whether to wait for cases that other processes have.
    is_done: whether a case has a result, looked at without reading it. failed: cases that failed,
    wherever and whenever that was, with the state of their note (`failures.noted`); those of others
    that failed since this began are not tried again here. only_failed: of the own part those that
    failed before, and nothing of others.
    """
    before = failed()
    mine = part.of(jobs)
    names = {job.name for job in mine}
    others = [job for job in jobs if job.name not in names]
    helped = 0
    if only_failed:
        mine = [job for job in mine if job.name in before]
    summary = run(mine, True)
    if part.helps and not only_failed and summary.ended_by is None:
        new = {name for name, note in failed().items() if note != before.get(name)}
        left = [job for job in others if job.name not in new and not is_done(job)]
        later = run(left, False) if left else RunSummary(())
        helped = sum(outcome.status == "done" for outcome in later.outcomes)
        summary = summary.with_more(later)
    missing = sum(not is_done(job) for job in others)
    spared = len(names) - len(mine) if only_failed else None
    return summary, Share(part, len(mine), len(others), helped, missing, spared)


def position_in(environment: Mapping[str, str]) -> Position | None:
    """Where a scheduler put this process; None outside of job arrays and tasks."""
    found = (detect(environment) for detect in _SCHEDULERS)
    return next((position for position in found if position is not None), None)


def _part_of(position: Position | None) -> Part:
    if position is None:
        return WHOLE
    if position.count is None:
        return Part(told_by=f"{position.told_by} does not say of how many jobs (--num-parts does)")
    return Part(position.number, position.count, position.told_by, helps=True)


def _slurm(environment: Mapping[str, str]) -> Position | None:
    array, tasks = _slurm_array(environment), _slurm_tasks(environment)
    if array is None or tasks is None:
        return array or tasks
    if array.count is None or tasks.count is None:
        return tasks  # every job of the array takes all cases, each task its share of them
    return Position(
        array.number * tasks.count + tasks.number,
        array.count * tasks.count,
        f"{array.told_by}, {tasks.told_by}",
        array.id * tasks.count + tasks.number,
        array.count * tasks.count,
    )


def _slurm_array(environment: Mapping[str, str]) -> Position | None:
    """Source: sbatch, output environment variables. `--array=1,3,7` has no step."""
    number = _number(environment, "SLURM_ARRAY_TASK_ID")
    if number is None:
        return None
    first = _number(environment, "SLURM_ARRAY_TASK_MIN")
    last = _number(environment, "SLURM_ARRAY_TASK_MAX")
    step = _number(environment, "SLURM_ARRAY_TASK_STEP")
    jobs = _number(environment, "SLURM_ARRAY_TASK_COUNT")
    position = _in_range(number, first, last, step, f"SLURM_ARRAY_TASK_ID={number}")
    return replace(position, count=position.count if position.count == jobs else None, jobs=jobs)


def _slurm_tasks(environment: Mapping[str, str]) -> Position | None:
    """One of several tasks that `srun` started.

    SLURM_NTASKS does not tell: a batch script has it, and SLURM_PROCID=0, without any other task.
    Source: srun, output environment variables.
    """
    number = _number(environment, "SLURM_PROCID")
    count = _number(environment, "SLURM_STEP_NUM_TASKS")
    step = _number(environment, "SLURM_STEP_ID")
    if number is None or count is None or step is None or step >= _SPECIAL_STEPS:
        return None
    if not number < count > 1:
        return None
    return Position(number, count, f"SLURM_PROCID={number}", number, count)


def _lsf(environment: Mapping[str, str]) -> Position | None:
    """LSB_JOBINDEX is 0 outside of arrays. Where an array begins is not told: taken to be 1.

    Source: IBM Spectrum LSF, environment variables.
    """
    number = _number(environment, "LSB_JOBINDEX")
    if not number:
        return None
    last = _number(environment, "LSB_JOBINDEX_END")
    step = _number(environment, "LSB_JOBINDEX_STEP") or 1
    return _in_range(number, 1, last, step, f"LSB_JOBINDEX={number}")


def _sge(environment: Mapping[str, str]) -> Position | None:
    """All four are "undefined" outside of arrays. Source: Grid Engine, submit(1)."""
    number = _number(environment, "SGE_TASK_ID")
    if number is None:
        return None
    first = _number(environment, "SGE_TASK_FIRST")
    last = _number(environment, "SGE_TASK_LAST")
    step = _number(environment, "SGE_TASK_STEPSIZE")
    position = _in_range(number, first, last, step, f"SGE_TASK_ID={number}")
    return replace(position, jobs=position.count)


def _index_alone(*names: str) -> Callable[[Mapping[str, str]], Position | None]:
    """PBS Professional, Torque and Kubernetes tell an index and nothing of the others."""

    def detect(environment: Mapping[str, str]) -> Position | None:
        for name in names:
            if (number := _number(environment, name)) is not None:
                return Position(number, None, f"{name}={number}", number)
        return None

    return detect


_SCHEDULERS = (
    _slurm,
    _lsf,
    _sge,
    _index_alone("PBS_ARRAY_INDEX", "PBS_ARRAYID", "JOB_COMPLETION_INDEX"),
)


def _in_range(
    number: int, first: int | None, last: int | None, step: int | None, told_by: str
) -> Position:
    """A number out of first, first + step, ... up to last; without a count where it is not."""
    own = number // (step or 1)
    if first is None or last is None or not step or not first <= number <= last:
        return Position(number, None, told_by, own)
    if (number - first) % step:
        return Position(number, None, told_by, own)
    return Position((number - first) // step, (last - first) // step + 1, told_by, own)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """A whole number from 0 up; None for anything else, as "undefined"."""
    value = environment.get(name, "").strip()
    return int(value) if value.isascii() and value.isdecimal() else None
