"""How many worker processes fit into the memory there is and have enough to do, said before they
start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iris_cli.errors import EnvironmentProblem
from iris_cli.execution.memory import gigabytes, memory_limit, resident_bytes

NAMES_SHOWN = 5
# CPU seconds until a new process works: imports. Each shall work at least twice as long.
START_S = 0.5
WORK_OVER_START = 2.0


@dataclass(frozen=True)
class Crew:
    """workers: processes that work (0: this one). needed_bytes: most they take together with this
    one, predicted. note: why there are fewer than were asked for, else empty."""

    workers: int
    needed_bytes: int
    note: str = ""


def choose_crew(needs: Mapping[str, int], workers: int, max_ram: int | None = None) -> Crew:
    """As many of the workers as take no more than `max_ram` at the worst moment.

    needs: case -> bytes of a process that works on it. workers: most that may work; 0 for none but
    this process. max_ram: bytes for all processes, this one included; by default the limit of the
    control group, or what the machine has. The worst moment is that of the largest cases together.
    raises EnvironmentProblem where one case alone needs more.
    """
    limit = max_ram if max_ram is not None else memory_limit()
    own = resident_bytes() or 0
    largest = sorted(needs.values(), reverse=True)
    together = [own if workers else 0]
    for need in largest[: max(1, workers)]:
        together.append(together[-1] + need)
    fitting = [n for n, size in enumerate(together) if limit is None or size <= limit]
    most = fitting[-1] if fitting else 0
    if largest and most == 0:
        raise _too_large(needs, limit or 0, together[0])
    if workers <= most or not largest:
        return Crew(workers, together[min(workers or 1, len(together) - 1)])
    allowed = min(workers, len(largest))
    note = (
        f"{most} of {workers} workers, which need at most {gigabytes(together[most])}: "
        f"{most + 1} would need {gigabytes(together[most + 1])}, and there are "
        f"{gigabytes(limit or 0)}"
        if most < allowed
        else ""
    )
    return Crew(min(most, allowed), together[most], note)


def worth_starting(workers: int, work_s: float) -> tuple[int, str]:
    """As many of the workers as have enough to do, and why there are fewer than were asked for.

    work_s: what all cases take together. One is always started where workers were asked for: it
    protects this process from cases that end theirs.
    """
    enough = max(1, int(work_s / (WORK_OVER_START * START_S)))
    if workers <= enough:
        return workers, ""
    return enough, (
        f"{enough} of {workers} workers: the cases take about {work_s:.1f} s, "
        f"and starting a worker takes {START_S:g} s"
    )


def _too_large(needs: Mapping[str, int], limit: int, own: int) -> EnvironmentProblem:
    names = sorted((n for n, need in needs.items() if own + need > limit), key=lambda n: -needs[n])
    shown = ", ".join(f"{name}: {gigabytes(own + needs[name])}" for name in names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return EnvironmentProblem(
        f"{len(names)} cases need more memory than there is",
        found=f"{shown}{more}",
        expected=f"at most {gigabytes(limit)}",
        fix="raise --max-ram, work on a larger machine, or take the cases out and plan anew",
    )
