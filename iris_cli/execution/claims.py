"""Claims: how any number of processes share the cases of one folder.

A claim is a small file `<case>.claim` created with `O_CREAT | O_EXCL` (atomic on local disks,
NFSv3 and later, Lustre). It holds host, boot id, pid, the start time of the process and a random
token; its modification time is the heartbeat. It is released when the case is done, and taken over
when its process is gone: at once where that can be seen (same host), else when the heartbeat has
not moved for `STALE_S` of our own clock (clocks of hosts differ, so times are never compared).

Taking over is under a guard file: of several takers one gets the claim (a rename alone lets a slow
taker remove the claim of a faster one). A claim only saves work; should it be lost, the case is
computed twice with equal results.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote

from iris_cli.errors import EnvironmentProblem
from iris_cli.files.hashing import hash_bytes
from iris_cli.files.publish import environment_problem, process_is_alive

BEAT_S = 15.0
STALE_S = 120.0
GUARD_S = 10.0
# Two heartbeats: one may be late.
WATCH_S = 2 * BEAT_S
CLAIM_BYTES = 1 << 12
"""Room that a claim takes on a disk: a block."""
_LOOK_S = 1.0
_ENDING = ".claim"
_LONGEST_NAME = 180


@dataclass(frozen=True)
class Holder:
    """Who holds a claim.

    space: the process id space (containers on one host have their own).
    started: start time of the process, where the system tells it. since: when the claim was taken,
    in seconds since 1970 of the holder's clock; 0 where an earlier version took it.
    """

    host: str
    boot: str
    space: str
    pid: int
    started: str
    token: str
    since: float = 0.0

    @classmethod
    def this_process(cls) -> Holder:
        """A holder for one claim of this process."""
        pid = os.getpid()
        return cls(
            socket.gethostname(),
            _boot_id(),
            _pid_space(),
            pid,
            _start_time(pid) or "",
            secrets.token_hex(8),
            time.time(),
        )

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """The holder a claim file names; None while the file is being written, or damaged."""
        try:
            fields: dict[str, Any] = json.loads(text)
            return cls(
                str(fields["host"]),
                str(fields["boot"]),
                str(fields["space"]),
                int(fields["pid"]),
                str(fields["started"]),
                str(fields["token"]),
                float(fields.get("since", 0.0)),
            )
        except (ValueError, KeyError, TypeError):
            return None

    def is_gone(self) -> bool | None:
        """Whether the process is gone; None where this host cannot know."""
        if self.host != socket.gethostname():
            return None
        if self.boot != _boot_id():
            return True
        if self.space != _pid_space():
            return None
        return not process_is_alive(self.pid) or _start_time(self.pid) != self.started


@dataclass
class _Sighting:
    """When a claim of another host was first seen with this token and heartbeat.

    moved: it was seen before, with others.
    """

    token: str
    beat: float
    since: float
    moved: bool


@dataclass
class Claims:
    """The claims of this process in one folder; use as a context manager.

    beat_s, stale_s: heartbeat, and how long one may be missing before another host's claim is
    taken over.
    """

    folder: Path
    beat_s: float = BEAT_S
    stale_s: float = STALE_S
    _held: dict[Path, Holder] = field(default_factory=dict)
    _sightings: dict[Path, _Sighting] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def path(self, case: str) -> Path:
        """The claim file of a case."""
        name = quote(case, safe="@+=, ")
        if len(name) > _LONGEST_NAME:
            name = f"{name[:80]}-{hash_bytes(case.encode())}"
        return self.folder / (name + _ENDING)

    def take(self, case: str) -> bool:
        """Try to claim a case: False while another living process has it.

        raises EnvironmentProblem where the claim cannot be written.
        """
        path = self.path(case)
        try:
            return self._create(path) or self._take_over(path)
        except OSError as error:
            raise _not_claimed(path, error) from error

    def may_be_lost(self, case: str) -> bool:
        """Whether the holder of a claim that was not taken is on a host that seems to be lost.

        Its heartbeat is older than `stale_s` by our clock, and does not move while we look; clocks
        of hosts differ, so only `take` can be sure of it, `stale_s` after the first attempt.
        """
        path = self.path(case)
        seen = self._sightings.get(path)
        if seen is None or seen.moved:
            return False
        return read_claim(path)[1] == seen.beat and time.time() - seen.beat >= self.stale_s

    def _take_over(self, path: Path) -> bool:
        holder, beat = read_claim(path)
        if not self._is_stale(path, holder, beat):
            return False
        token = holder.token if holder else ""
        return _set_aside(path, token) and self._create(path)

    def release(self, case: str) -> None:
        """Give a claim back; a claim that was taken over meanwhile is left to its new holder."""
        self._release(self.path(case))

    def _release(self, path: Path) -> None:
        with self._lock:
            mine = self._held.pop(path, None)
        holder, _ = read_claim(path)
        if mine is not None and holder is not None and holder.token == mine.token:
            path.unlink(missing_ok=True)

    def __enter__(self) -> Claims:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_claimed(self.folder, error) from error
        self._ended.clear()
        self._thread = threading.Thread(target=self._beat, name="iris-claims", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        for path in list(self._held):
            with contextlib.suppress(OSError):
                self._release(path)
        self._held.clear()
        # The folder goes with the last claim; another process may still have one in it.
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _create(self, path: Path) -> bool:
        holder = Holder.this_process()
        text = json.dumps(holder.__dict__)
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                break
            except FileExistsError:
                return False
            except FileNotFoundError:
                # The last process removed the empty folder.
                path.parent.mkdir(parents=True, exist_ok=True)
        else:
            return False
        try:
            os.write(descriptor, text.encode())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        with self._lock:
            self._held[path] = holder
        return True

    def _is_stale(self, path: Path, holder: Holder | None, beat: float | None) -> bool:
        if beat is None:
            return False  # released this moment: the next attempt creates it
        gone = holder.is_gone() if holder is not None else None
        if gone is not None:
            return gone
        token = holder.token if holder else ""
        seen = self._sightings.get(path)
        if seen is None or (seen.token, seen.beat) != (token, beat):
            self._sightings[path] = _Sighting(token, beat, time.monotonic(), seen is not None)
            return False
        return time.monotonic() - seen.since >= self.stale_s

    def _beat(self) -> None:
        while not self._ended.wait(self.beat_s):
            with self._lock:
                held = list(self._held)
            for path in held:
                with contextlib.suppress(OSError):
                    os.utime(path)


def case_of(path: Path) -> str:
    """The case of a claim file, whose name is cut and hashed where it is very long."""
    return unquote(path.name.removesuffix(_ENDING))


def read_claim(path: Path) -> tuple[Holder | None, float | None]:
    """Holder and heartbeat of a claim; (None, None) where there is no claim."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            # Of the open file: a network file system asks its server for it anew.
            beat = os.fstat(stream.fileno()).st_mtime
            return Holder.parse(stream.read()), beat
    except OSError:
        return None, None


def living(paths: Iterable[Path], *, watch_s: float = WATCH_S) -> dict[Path, Holder]:
    """The claims whose process lives, as far as can be seen from here; nothing is changed.

    Of a process on another host only the heartbeat can be seen. One that is young by our clock is
    believed; clocks of hosts differ, so a claim that looks old is given up only where it does not
    move within `watch_s` seconds.
    """
    claims = {path: read_claim(path) for path in paths}
    seen = {path: _lives(*claim) for path, claim in claims.items()}
    watched = [path for path, alive in seen.items() if alive is None]
    ends = time.monotonic() + watch_s
    while watched and time.monotonic() < ends:
        time.sleep(min(_LOOK_S, watch_s))
        for path in watched:
            seen[path] = read_claim(path)[1] not in (None, claims[path][1])
        watched = [path for path in watched if not seen[path]]
    return {path: holder for path, (holder, _) in claims.items() if holder and seen[path]}


def _lives(holder: Holder | None, beat: float | None) -> bool | None:
    """Whether the process of a claim lives; None where it has to be watched for a while."""
    if holder is None or beat is None:
        return False
    gone = holder.is_gone()
    if gone is not None:
        return not gone
    return True if time.time() - beat < STALE_S else None


def _not_claimed(path: Path, error: OSError) -> EnvironmentProblem:
    return environment_problem(path, error, needs=CLAIM_BYTES) or EnvironmentProblem(
        "the folder of the outputs cannot be claimed",
        file=path,
        found=error.strerror,
        fix="free space or correct the permissions of the folder",
    )


def _set_aside(path: Path, token: str) -> bool:
    """Remove a stale claim; True for the one process that did.

    Only the holder of the guard may do it, and it looks again first: otherwise a slow taker could
    remove the claim of a faster one, and a third could get in between.
    """
    guard = path.with_name(f".{path.name}.takeover")
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        _forget_abandoned(guard)
        return False
    try:
        holder, beat = read_claim(path)
        if beat is None or (holder.token if holder else "") != token:
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _forget_abandoned(guard: Path) -> None:
    """A guard is held for a moment; an old one was left by a killed process."""
    with contextlib.suppress(OSError):
        if time.time() - guard.stat().st_mtime > GUARD_S:
            guard.unlink()


def _start_time(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; pids are used again, this is not.

    None where there is no such process (one that ended but was not waited for counts as ended),
    "" where the system does not tell.
    """
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command's name is in parentheses and may hold anything.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
