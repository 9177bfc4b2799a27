"""Stop requests: flags set by signals and time limits."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

import pytest

from iris_cli.errors import Interrupted, Stopped
from iris_cli.execution.signals import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_wakes_who_waits(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        ready, _, _ = select.select([stop], [], [], 5)
        assert ready == [stop]
        assert stop.reason == number.name
        with pytest.raises(Stopped, match=f"stopped by {number.name}: step 3 is saved") as caught:
            stop.raise_if_requested("step 3 is saved")
    assert caught.value.exit_code == 75


def test_nothing_is_raised_while_nothing_was_asked() -> None:
    with StopRequest() as stop:
        stop.raise_if_requested()
        assert stop.remaining_s is None


def test_the_time_limit_counts_from_entering() -> None:
    stop = StopRequest(0.05)
    time.sleep(0.1)
    with stop:
        assert not stop.requested
        time.sleep(0.1)
        assert stop.reason == "--stop-after 0.05 s"


def test_handlers_are_put_back_and_inner_uses_change_nothing() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with StopRequest() as stop:
        with stop:
            pass
        assert signal.getsignal(signal.SIGTERM) not in before.values()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    assert stop.fileno() == -1


def test_a_second_interrupt_becomes_interrupted() -> None:
    def interrupt_twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    with pytest.raises(Interrupted) as caught, StopRequest():
        interrupt_twice()
    assert caught.value.exit_code == 130


def test_an_interrupt_after_a_schedulers_signal_is_the_first_one() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert stop.requested


def test_in_another_thread_only_the_time_limit_counts() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopRequest(0.0) as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, True)]
