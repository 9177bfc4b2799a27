"""Which case comes next, who may work on it, and what became of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iris_cli.execution.claims import Claims
from iris_cli.execution.failures import note_outcome
from iris_cli.execution.outcomes import ENVIRONMENT, CaseJob, Outcome, RunSummary
from iris_cli.execution.progress import Progress
from iris_cli.execution.worker import Ran

# A full disk fails every case after minutes of work each: after so many failures of the
# environment with nothing done in between the rest is not started.
_ENVIRONMENT_FAILURES = 3
_LOOK_AGAIN_S = (0.2, 5.0)


@dataclass(frozen=True)
class Rules:
    """What is done about a case that failed, and about one that another process has.

    strict: the first failure ends the job; cases in work are finished, no other one is begun.
    waits: for cases that another process has claimed; else they are left to it, unless its host
    seems to be lost (`Claims.may_be_lost`).
    failures: folder of the notes of failed cases (`failures`), None for none.
    """

    strict: bool = False
    waits: bool = True
    failures: Path | None = None


DEFAULT_RULES = Rules()


class Schedule:
    """The cases of a job in order; those claimed by other processes come back later.

    One thread hands cases out; any may record what became of one.
    """

    def __init__(
        self,
        jobs: Sequence[CaseJob],
        claims: Claims | None,
        progress: Progress,
        rules: Rules = DEFAULT_RULES,
    ) -> None:
        self.jobs = jobs
        self._claims = claims
        self._progress = progress
        self._rules = rules
        self._pending = deque(range(len(jobs)))
        self._elsewhere: list[int] = []
        self._look_again_s = _LOOK_AGAIN_S[0]
        self._look_again_at = 0.0
        self._outcomes: dict[int, Outcome] = {}
        self._ended_by: Outcome | None = None
        self._environment_failures = 0
        self._lock = threading.Lock()

    @property
    def has_more(self) -> bool:
        """Whether cases are left to hand out, now or when other processes release them."""
        return bool(self._pending or self._elsewhere)

    @property
    def has_pending(self) -> bool:
        """Whether a case may be handed out now."""
        with self._lock:
            self._look_again()
            return bool(self._pending)

    @property
    def finished(self) -> int:
        return len(self._outcomes)

    def wait_s(self) -> float | None:
        """Seconds until cases of other processes are looked at again; None without such."""
        if self._pending or not self._elsewhere:
            return None
        return max(0.0, self._look_again_at - time.monotonic())

    def take(self) -> int | None:
        """The next case, claimed for this process; None where there is none right now."""
        with self._lock:
            return self._take()

    def _take(self) -> int | None:
        self._look_again()
        while self._pending:
            index = self._pending.popleft()
            if self._claims is None or self._claims.take(self.jobs[index].name):
                self._look_again_s = _LOOK_AGAIN_S[0]
                return index
            if not self._rules.waits and not self._claims.may_be_lost(self.jobs[index].name):
                continue
            if not self._elsewhere:
                self._look_again_at = time.monotonic() + self._look_again_s
            self._elsewhere.append(index)
        return None

    def record(self, index: int, ran: Ran) -> None:
        """Keep the outcome of a case and release its claim."""
        with self._lock:
            self._record(index, ran)

    def _record(self, index: int, ran: Ran) -> None:
        status = ran.result.status if ran.result is not None else "failed"
        outcome = Outcome(self.jobs[index].name, status, ran.seconds, ran.error, ran.result)
        if self._rules.failures is not None:
            note_outcome(self._rules.failures, outcome)
        self._keep(index, outcome)
        if self._claims is not None:
            self._claims.release(outcome.name)
        if status == "failed" and self._rules.strict:
            self._ended_by = self._ended_by or outcome
            self._rest()
        self._count_environment(ran)

    def summary(self) -> RunSummary:
        """All outcomes in the order of the jobs."""
        outcomes = tuple(self._outcomes[index] for index in sorted(self._outcomes))
        return RunSummary(outcomes, self._ended_by)

    def _keep(self, index: int, outcome: Outcome) -> None:
        self._outcomes[index] = outcome
        self._progress.advance(outcome.name, outcome.status)

    def _rest(self) -> list[int]:
        """The cases that were not handed out, which are not handed out any more.

        Those that other processes have are left to them.
        """
        rest = list(self._pending)
        self._pending.clear()
        self._elsewhere.clear()
        return rest

    def _look_again(self) -> None:
        if self._elsewhere and not self._pending and time.monotonic() >= self._look_again_at:
            self._look_again_s = min(2 * self._look_again_s, _LOOK_AGAIN_S[1])
            self._pending.extend(self._elsewhere)
            self._elsewhere.clear()

    def _count_environment(self, ran: Ran) -> None:
        if ran.error is None or ran.error.get("exit_code") != ENVIRONMENT:
            self._environment_failures = 0
            return
        self._environment_failures += 1
        if self._environment_failures < _ENVIRONMENT_FAILURES:
            return
        # Without a note: nobody has tried these cases, and others may do them.
        error = {**ran.error, "problem": f"not started: {ran.error['problem']}"}
        for index in self._rest():
            self._keep(index, Outcome(self.jobs[index].name, "failed", 0.0, error))
