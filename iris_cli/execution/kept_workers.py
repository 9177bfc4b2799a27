"""Worker processes between jobs: the next job of the same function goes on with them.

For programs that run one small job after another, where starting a worker and loading what it
needs would cost more than the work.
"""

from __future__ import annotations

from iris_cli.execution.process import WorkerProcess


class KeptWorkers:
    """The workers of the last job while there is none; a context manager that leaves none alive."""

    def __init__(self) -> None:
        self._function = b""
        self._workers: list[WorkerProcess] = []

    def __enter__(self) -> KeptWorkers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._kill(self._workers)
        self._workers = []

    def take(self, function: bytes, count: int) -> list[WorkerProcess]:
        """At most `count` that live and serve this pickled function, numbered below it.

        Those of higher numbers wait for a job with more cases.
        """
        fit = [
            worker
            for worker in self._workers
            if function == self._function and worker.process.is_alive()
        ]
        self._kill([worker for worker in self._workers if worker not in fit])
        self._workers = [worker for worker in fit if worker.number >= count]
        return [worker for worker in fit if worker.number < count]

    def keep(self, function: bytes, workers: list[WorkerProcess]) -> None:
        """Keep those without a case, waiting or starting; those in the middle of one are killed."""
        self._function = function
        self._workers += [one for one in workers if one.index is None]
        self._kill([one for one in workers if one.index is not None])

    def _kill(self, workers: list[WorkerProcess]) -> None:
        for worker in workers:
            worker.kill()
