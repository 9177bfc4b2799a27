"""Claims: one holder for a case, taken over when it is gone and not before."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_cli.errors import EnvironmentProblem
from iris_cli.execution.claims import CLAIM_BYTES, STALE_S, Claims, Holder, living

ELSEWHERE = {"host": "another-host", "boot": "b", "space": "s", "pid": 7, "started": "1"}


def write_claim(claims: Claims, case: str, **fields: Any) -> Path:
    """A claim file of another process: by default of this host, and alive."""
    holder = {**Holder.this_process().__dict__, **fields}
    claims.folder.mkdir(parents=True, exist_ok=True)
    path = claims.path(case)
    path.write_text(json.dumps(holder))
    return path


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_claim_has_one_holder_and_can_be_released(tmp_path: Path) -> None:
    with Claims(tmp_path / "claims") as first, Claims(tmp_path / "claims") as second:
        assert first.take("a")
        assert not second.take("a")
        assert second.take("b")
        first.release("a")
        assert second.take("a")
    assert not (tmp_path / "claims").exists()


def test_a_claim_that_does_not_fit_the_disk_leaves_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Claims(tmp_path / "claims") as claims:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(EnvironmentProblem, match="disk is full") as caught:
            claims.take("a")
        assert caught.value.expected == f"room for {CLAIM_BYTES} bytes"
        monkeypatch.undo()
        assert claims.take("a")


def test_claims_are_released_when_the_work_ends_with_an_error(tmp_path: Path) -> None:
    def fail(claims: Claims) -> None:
        assert claims.take("a")
        raise KeyError

    with pytest.raises(KeyError), Claims(tmp_path / "claims") as claims:
        fail(claims)
    assert not (tmp_path / "claims").exists()


def test_a_claim_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        write_claim(claims, "a", pid=ended_pid())
        assert claims.take("a")


def test_a_claim_of_a_process_id_that_was_used_again_is_taken_over(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        write_claim(claims, "a", started="1")
        assert claims.take("a")


def test_a_claim_from_before_the_last_boot_is_taken_over(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        write_claim(claims, "a", boot="an earlier boot")
        assert claims.take("a")


def test_a_claim_of_a_living_process_is_left_however_old(tmp_path: Path) -> None:
    with Claims(tmp_path, stale_s=0.0) as claims:
        path = write_claim(claims, "a", token="theirs")
        os.utime(path, (1, 1))
        assert not claims.take("a")
        assert not claims.take("a")


@pytest.mark.parametrize("fields", [ELSEWHERE, {"space": "a container"}])
def test_a_claim_of_another_host_is_taken_over_when_its_heartbeat_stops(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    with Claims(tmp_path, stale_s=0.3) as claims:
        path = write_claim(claims, "a", **fields)
        assert not claims.take("a")
        time.sleep(0.2)
        os.utime(path, (2, 2))  # their clock is wrong, but it beats
        assert not claims.take("a")
        time.sleep(0.2)
        assert not claims.take("a")
        time.sleep(0.2)
        assert claims.take("a")


def test_a_damaged_claim_is_taken_over_after_the_same_time(tmp_path: Path) -> None:
    with Claims(tmp_path, stale_s=0.1) as claims:
        claims.path("a").write_text('{"host": ')
        assert not claims.take("a")
        time.sleep(0.15)
        assert claims.take("a")


def test_the_heartbeat_moves(tmp_path: Path) -> None:
    with Claims(tmp_path, beat_s=0.05) as claims:
        claims.take("a")
        os.utime(claims.path("a"), (1, 1))
        time.sleep(0.3)
        assert claims.path("a").stat().st_mtime > 1


def test_a_claim_that_was_taken_over_is_not_released_by_its_old_holder(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        claims.take("a")
        path = write_claim(claims, "a", token="theirs")
        claims.release("a")
        assert path.exists()
        path.unlink()


def test_of_many_takers_of_a_stale_claim_one_wins(tmp_path: Path) -> None:
    takers = [Claims(tmp_path) for _ in range(8)]
    write_claim(takers[0], "a", pid=ended_pid())
    barrier, won = threading.Barrier(len(takers)), []

    def take(claims: Claims) -> None:
        barrier.wait()
        if claims.take("a"):
            won.append(claims)

    threads = [threading.Thread(target=take, args=(claims,)) for claims in takers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) <= 1  # none: every one gave way to another, and asks again
    assert won or takers[0].take("a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.claim"]


@given(st.text(min_size=1), st.text(min_size=1))
def test_claim_files_stay_in_the_folder_and_differ(first: str, second: str) -> None:
    claims = Claims(Path("/claims"))
    assert claims.path(first).parent == Path("/claims")
    assert (claims.path(first) == claims.path(second)) == (first == second)


def test_a_claim_taken_over_meanwhile_is_left_to_its_holder_at_the_end(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        assert claims.take("a")
        path = write_claim(claims, "a", **ELSEWHERE, token="theirs")
    assert json.loads(path.read_text())["token"] == "theirs"


def test_the_living_are_seen_without_comparing_clocks(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    mine = write_claim(claims, "mine")
    gone = write_claim(claims, "gone", pid=ended_pid())
    young, silent, skewed = (write_claim(claims, n, host=n) for n in ("young", "silent", "skewed"))
    old = time.time() - 2 * STALE_S
    for path in (silent, skewed, mine):
        os.utime(path, (old, old))
    # Its clock is behind ours, and it lives.
    beat = threading.Timer(0.05, lambda: os.utime(skewed, (old + 15, old + 15)))
    beat.start()
    found = living([mine, gone, young, silent, skewed, tmp_path / "none"], watch_s=0.4)
    beat.join()
    assert set(found) == {mine, young, skewed}
    assert found[skewed].host == "skewed"
