"""The inside of a worker process, and running one case (in a worker or here)."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from iris_cli.errors import IrisError, Stopped
from iris_cli.execution.deaths import Vital
from iris_cli.execution.memory import resident_bytes
from iris_cli.execution.outcomes import CaseResult, error_parts
from iris_cli.execution.signals import ignore_in_worker
from iris_cli.execution.stages import current_stage
from iris_cli.execution.threads import configure

CaseFunction = Callable[[Any], CaseResult]

READY, BROKEN, FINISHED, ALIVE = "ready", "broken", "finished", "alive"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ran:
    """One run of the case function: a result, or the parts of an error."""

    seconds: float
    result: CaseResult | None
    error: dict[str, Any] | None


def run_case(function: CaseFunction, payload: Any) -> Ran:
    """Run the case function; its exception becomes part of the outcome, Stopped passes."""
    started = time.monotonic()
    try:
        result = function(payload)
        if not isinstance(result, CaseResult):
            raise IrisError(
                "a case function returned something else than a CaseResult",
                found=type(result).__name__,
            )
    except Stopped:
        raise
    except (Exception, SystemExit) as error:
        return Ran(time.monotonic() - started, None, error_parts(error))
    return Ran(time.monotonic() - started, result, None)


def worker_main(
    connection: Connection, pickled_function: bytes, parent: int, beat_s: float
) -> None:
    """Serve cases until the connection ends: the target of a worker process.

    beat_s: seconds between heartbeats, which are sent for as long as a case is in work.
    """
    ignore_in_worker()
    _die_with(parent)
    configure(1)
    try:
        # Only now: whatever the function's module imports must find the thread settings.
        function: CaseFunction = pickle.loads(pickled_function)
    except Exception as error:
        connection.send((BROKEN, error_parts(error)))
        return
    connection.send((READY, None))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while (pickled := connection.recv_bytes()) != b"":
            with _heartbeat(connection, beat_s):
                ran = _serve(function, pickled)
            _send(connection, ran)


@contextlib.contextmanager
def _heartbeat(connection: Connection, beat_s: float) -> Iterator[None]:
    """Say every few seconds which step the case is in, and how much memory the process holds.

    The thread has ended before anything else is sent: a connection is not for two threads.
    """
    done = threading.Event()

    def beat() -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone, and this process is next
            while not done.wait(beat_s):
                connection.send((ALIVE, Vital(current_stage(), resident_bytes())))

    thread = threading.Thread(target=beat, name="iris-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _serve(function: CaseFunction, pickled_payload: bytes) -> Ran:
    try:
        payload = pickle.loads(pickled_payload)
        return run_case(function, payload)
    except Exception as error:
        return Ran(0.0, None, error_parts(error))


def _send(connection: Connection, ran: Ran) -> None:
    try:
        connection.send((FINISHED, ran))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        # The receipt holds something that cannot leave the process.
        connection.send((FINISHED, Ran(ran.seconds, None, error_parts(error))))


def _die_with(parent: int) -> None:
    """End this process when its parent ends, even by SIGKILL, where the system can do that."""
    if sys.platform != "linux":
        return  # elsewhere the end of the connection is noticed after the case in work
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # the parent ended before the line above
