"""Which share of the cases a process takes, by its options or by its scheduler."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from iris_cli.errors import UsageError
from iris_cli.execution.jobs import CaseJob, CaseResult, Outcome, RunSummary
from iris_cli.execution.parts import WHOLE, Part, Share, choose_part, position_in, run_part


def slurm_array(number: int, first: int, last: int, step: int, count: int) -> dict[str, str]:
    values = {"ID": number, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def slurm_step(number: int, count: int, step: int = 0) -> dict[str, str]:
    return {
        "SLURM_PROCID": str(number),
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_ID": str(step),
        "SLURM_NTASKS": str(count),
    }


def lsf(number: int, last: int, step: int = 1) -> dict[str, str]:
    values = {"": number, "_END": last, "_STEP": step}
    return {f"LSB_JOBINDEX{name}": str(value) for name, value in values.items()}


def sge(number: object, first: object, last: object, step: object) -> dict[str, str]:
    values = {"ID": number, "FIRST": first, "LAST": last, "STEPSIZE": step}
    return {f"SGE_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("count", "jobs"),
    [
        (4, [slurm_array(number, 0, 3, 1, 4) for number in range(4)]),
        (4, [slurm_array(number, 1, 7, 2, 4) for number in (1, 3, 5, 7)]),
        (3, [slurm_array(number, 1, 8, 3, 3) for number in (1, 4, 7)]),
        (3, [slurm_step(number, 3) for number in range(3)]),
        (
            6,
            [
                slurm_array(number, 5, 6, 1, 2) | slurm_step(task, 3)
                for number, task in itertools.product((5, 6), range(3))
            ],
        ),
        (3, [lsf(number, 3) for number in (1, 2, 3)]),
        (5, [lsf(number, 10, 2) for number in (1, 3, 5, 7, 9)]),
        (3, [sge(number, 2, 6, 2) for number in (2, 4, 6)]),
        (2, [sge(number, 1, 4, 2) for number in (1, 3)]),
    ],
)
def test_the_jobs_of_a_scheduler_take_every_case_once(
    count: int, jobs: list[dict[str, str]]
) -> None:
    cases = list(range(23))
    parts = [choose_part(None, None, job) for job in jobs]
    assert {part.count for part in parts} == {count}
    assert sorted(case for part in parts for case in part.of(cases)) == cases


@pytest.mark.parametrize(
    "environment",
    [
        {},
        lsf(0, 0, 0),
        sge("undefined", "undefined", "undefined", "undefined"),
        # A batch script: several tasks were asked for, and srun did not start any.
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4"},
        # An interactive shell in an allocation of two tasks.
        slurm_step(0, 2, step=4294967290),
        slurm_step(0, 1),
        {"SLURM_ARRAY_TASK_ID": "x", "JOB_COMPLETION_INDEX": ""},
    ],
)
def test_a_process_that_is_one_alone_takes_everything_without_a_word(
    environment: dict[str, str],
) -> None:
    part = choose_part(None, None, environment)
    assert part == WHOLE
    assert Share(part, 5).notes() == []


@pytest.mark.parametrize(
    "environment",
    [
        slurm_array(3, 1, 7, 1, 3),  # --array=1,3,7
        {"SLURM_ARRAY_TASK_ID": "3"},
        {"LSB_JOBINDEX": "3"},
        lsf(4, 10, 2),
        sge(3, 1, "undefined", 1),
        {"PBS_ARRAY_INDEX": "3"},
        {"PBS_ARRAYID": "3"},
        {"JOB_COMPLETION_INDEX": "0"},
    ],
)
def test_an_index_without_a_count_leaves_no_case_out(environment: dict[str, str]) -> None:
    part = choose_part(None, None, environment)
    assert part.of(range(7)) == list(range(7))
    (note,) = Share(part, 7).notes()
    assert "every case is taken here" in note
    assert "--num-parts" in note


def test_tasks_of_an_irregular_array_share_the_cases_of_each_job() -> None:
    environment = slurm_array(3, 1, 7, 1, 3) | slurm_step(1, 2)
    assert choose_part(None, None, environment) == Part(1, 2, "SLURM_PROCID=1", helps=True)


@pytest.mark.parametrize("first", [0, 1, 17])
def test_the_number_of_parts_makes_an_index_enough(first: int) -> None:
    environments = [{"PBS_ARRAY_INDEX": str(first + number)} for number in range(4)]
    parts = [choose_part(4, None, environment) for environment in environments]
    assert sorted(part.index for part in parts) == [0, 1, 2, 3]


def test_what_the_user_says_wins_over_the_scheduler() -> None:
    environment = slurm_array(3, 0, 7, 1, 8)
    assert choose_part(4, 1, environment) == Part(1, 4, "--part-id")
    assert choose_part(1, None, environment) == WHOLE
    assert choose_part(8, None, environment) == Part(3, 8, "SLURM_ARRAY_TASK_ID=3", helps=True)


@pytest.mark.parametrize(
    "jobs",
    [
        [slurm_array(number, 1, 8, 1, 8) for number in range(1, 9)],
        [slurm_array(number, 3, 17, 2, 8) for number in range(3, 18, 2)],
        [sge(number, 3, 17, 2) for number in range(3, 18, 2)],
        [lsf(number, 15, 2) for number in range(1, 16, 2)],
        [slurm_array(4, 4, 4, 1, 1) | slurm_step(number, 8) for number in range(8)],
        [{"PBS_ARRAY_INDEX": str(number)} for number in range(5, 13)],
    ],
)
def test_as_many_jobs_as_parts_take_every_part_once(jobs: list[dict[str, str]]) -> None:
    assert sorted(choose_part(8, None, job).index for job in jobs) == list(range(8))


@pytest.mark.parametrize("number", [3, 5])
def test_a_job_that_is_sent_again_takes_the_part_it_had(number: int) -> None:
    whole = choose_part(8, None, lsf(number, 8))
    assert choose_part(8, None, lsf(number, number)) == whole
    assert choose_part(8, None, {"PBS_ARRAY_INDEX": str(number)}).index == whole.index
    with pytest.raises(UsageError, match="which of the parts") as refused:
        choose_part(8, None, slurm_array(number, number, number, 1, 1))
    # Whether it is a part of an array of eight, nobody says.
    before = choose_part(8, None, slurm_array(number, 1, 8, 1, 8))
    assert f"it was {before.index} for this one" in str(refused.value)


@pytest.mark.parametrize(
    "environment",
    [
        slurm_array(3, 0, 7, 1, 8),
        slurm_array(2, 2, 5, 1, 2),
        slurm_array(1, 1, 7, 1, 3),  # --array=1,3,7: two of them have the same remainder
        sge(3, 1, 8, 1),
        slurm_step(1, 4),
    ],
)
def test_an_array_that_does_not_fit_the_number_of_parts_is_refused(
    environment: dict[str, str],
) -> None:
    with pytest.raises(UsageError, match="which of the parts") as refused:
        choose_part(3, None, environment)
    assert "--part-id" in str(refused.value)
    assert choose_part(3, 2, environment) == Part(2, 3, "--part-id")


@pytest.mark.parametrize(
    ("num_parts", "part_id", "problem"),
    [
        (None, 0, "of how many"),
        (3, 3, "no such part"),
        (3, -1, "no such part"),
        (0, None, "no such part"),
        (1, 1, "no such part"),
        (3, None, "which of the parts"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    num_parts: int | None, part_id: int | None, problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        choose_part(num_parts, part_id, {})


def test_cases_of_other_parts_are_spoken_of() -> None:
    share = Share(Part(1, 3, "SGE_TASK_ID=2"), cases=4, others=8, helped=1, missing=5)
    (note,) = share.notes()
    assert "part 1 of 3" in note
    assert "SGE_TASK_ID=2" in note
    assert "8 belong to other parts, 1 of them were left and taken here" in note
    assert "5 of those are not done" in note
    assert share.to_json()["of_those_not_done"] == 5


def test_the_first_scheduler_that_says_something_counts() -> None:
    position = position_in({"PBS_ARRAY_INDEX": "2", **sge("undefined", 1, 2, 1)})
    assert position is not None
    assert position.told_by == "PBS_ARRAY_INDEX=2"


class Folder:
    """Cases that were done or failed, and the order in which they were tried.

    fail_meanwhile: cases that fail elsewhere while the own part is done.
    """

    def __init__(self, *, done: str = "", failed: str = "", fail_meanwhile: str = "") -> None:
        self.done, self.failed = set(done), dict.fromkeys(failed, "before")
        self.meanwhile = dict.fromkeys(fail_meanwhile, "meanwhile")
        self.tried: list[str] = []

    def run(self, jobs: Sequence[CaseJob], waits: bool) -> RunSummary:
        self.failed |= self.meanwhile
        self.tried += [job.name if waits else job.name.upper() for job in jobs]
        self.done |= {job.name for job in jobs}
        receipt = CaseResult("done", {})
        return RunSummary(tuple(Outcome(job.name, "done", 0.0, None, receipt) for job in jobs))

    def share(self, part: Part, *, only_failed: bool = False) -> Share:
        return run_part(
            [CaseJob(name, None) for name in "abcdefg"],
            part,
            self.run,
            is_done=lambda job: job.name in self.done,
            failed=lambda: dict(self.failed),
            only_failed=only_failed,
        )[1]


def test_a_job_of_an_array_takes_its_own_first_and_then_what_nobody_did() -> None:
    folder = Folder(done="a", fail_meanwhile="d")
    part = Part(1, 2, "LSB_JOBINDEX=2", helps=True)
    share = folder.share(part)
    # Of the others a is done; d failed, and is its own.
    assert folder.tried == ["b", "d", "f", "C", "E", "G"]
    assert share == Share(part, cases=3, others=4, helped=3, missing=0)


def test_a_case_of_another_part_that_fails_meanwhile_is_not_tried_again() -> None:
    # c failed before, and the job that it belongs to has tried it again.
    folder = Folder(failed="c", fail_meanwhile="ce")
    assert folder.share(Part(1, 2, "x", helps=True)).missing == 2
    assert folder.tried == ["b", "d", "f", "A", "G"]


def test_a_case_of_another_part_that_failed_in_an_earlier_run_is_tried() -> None:
    folder = Folder(failed="c")
    assert folder.share(Part(1, 2, "x", helps=True)).missing == 0
    assert "C" in folder.tried


def test_a_part_that_the_user_chose_is_all_that_is_taken() -> None:
    folder = Folder()
    assert folder.share(Part(1, 2, "--part-id")) == Share(
        Part(1, 2, "--part-id"), cases=3, others=4, missing=4
    )
    assert folder.tried == ["b", "d", "f"]


def test_only_failed_cases_of_the_part() -> None:
    folder = Folder(done="g", failed="acd")
    share = folder.share(Part(0, 2, "x", helps=True), only_failed=True)
    assert folder.tried == ["a", "c"]
    assert (share.cases, share.spared, share.helped) == (2, 2, 0)
    assert "2 cases had failed before; 2 had not" in share.notes()[-1]
