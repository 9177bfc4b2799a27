"""Case functions for tests: top-level, so that worker processes can import them."""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris_cli.errors import DataRefused, EnvironmentProblem
from iris_cli.execution.jobs import CaseResult
from iris_cli.execution.receipts import Receipt, matches, read_receipt, write_receipt
from iris_cli.execution.stages import stage


@dataclass(frozen=True)
class Order:
    """What a case function is told to do. `folder` is for traces it leaves."""

    do: str
    value: float = 0
    folder: Path | None = None


def perform(order: Order) -> CaseResult:
    """Do as told; the receipt says with which value and in which process."""
    action = _ACTIONS.get(order.do)
    if action is not None:
        action(order)
    status: Any = "kept" if order.do == "keep" else "done"
    return CaseResult(status, {"value": order.value})


def publish_once(order: Order) -> CaseResult:
    """A case as real ones are: kept where its receipt matches, else computed and published."""
    assert order.folder is not None
    path = order.folder / f"case_{order.value}.json"
    inputs = {"value": order.value}
    if matches(read_receipt(path), inputs):
        return CaseResult("kept", {})
    time.sleep(0.02)
    with (order.folder / "computed.txt").open("a") as stream:
        stream.write(f"{order.value}\n")
    write_receipt(path, Receipt(case=str(order.value), content={"inputs": inputs}))
    return CaseResult("done", {})


def alone_in_its_process(order: Order) -> CaseResult:
    """Raises FileExistsError where another case is in work in this process."""
    assert order.folder is not None
    mark = order.folder / f"in_work_{os.getpid()}"
    mark.touch(exist_ok=False)
    time.sleep(0.05)
    mark.unlink()
    return CaseResult("done", {})


def environment_of_worker(order: Order) -> CaseResult:
    """What a worker sees of the thread settings."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    return CaseResult("done", {name: os.environ.get(name) for name in names})


def _kill(order: Order) -> None:
    os.kill(os.getpid(), int(order.value) or signal.SIGKILL)


def _kill_first_time(order: Order) -> None:
    assert order.folder is not None
    trace = order.folder / f"killed_{order.value}"
    if not trace.exists():
        trace.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _refuse(order: Order) -> None:
    raise DataRefused("no voxel", file="a.nii.gz", found=0, expected=1, fix="another file")


def _disk_full(order: Order) -> None:
    raise EnvironmentProblem("the disk is full")


def _may_not_read(order: Order) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", str(order.folder))


def _errno(order: Order) -> None:
    raise OSError(int(order.value), os.strerror(int(order.value)), str(order.folder))


def _cpu_memory(order: Order) -> None:
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
    )


class OutOfMemoryError(RuntimeError):
    """Stands for the one of torch."""


def _device_memory(order: Order) -> None:
    raise OutOfMemoryError("Tried to allocate 20.00 GiB.")


def _volume_memory(order: Order) -> None:
    raise EnvironmentProblem("not enough memory for this volume") from MemoryError()


def _crash(order: Order) -> None:
    error = KeyError("spacing")
    error.stage = "resampling"  # type: ignore[attr-defined]
    raise error


def _sleep(order: Order) -> None:
    if order.folder is not None:
        (order.folder / "started").touch()
    time.sleep(order.value)


def _stop(order: Order) -> None:
    """Stand still for good, as a process does whose disk does not answer."""
    with stage("waiting for the disk"):
        time.sleep(order.value)
        os.kill(os.getpid(), signal.SIGSTOP)


def _crash_in_stage(order: Order) -> None:
    with stage("the case"), stage("resampling", order.folder):
        raise ZeroDivisionError("no width")


def _exit(order: Order) -> None:
    os._exit(7)


_ACTIONS = {
    "kill": _kill,
    "kill once": _kill_first_time,
    "refuse": _refuse,
    "disk full": _disk_full,
    "may not read": _may_not_read,
    "errno": _errno,
    "cpu memory": _cpu_memory,
    "device memory": _device_memory,
    "volume memory": _volume_memory,
    "crash": _crash,
    "sleep": _sleep,
    "exit": _exit,
    "stop": _stop,
    "crash in stage": _crash_in_stage,
}
