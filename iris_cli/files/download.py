"""Downloads by URL with a checksum, a progress callback and resume.

Only commands whose purpose is a download call this. HTTPS is required except for loopback
addresses, where the tests serve files.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from iris_cli.errors import DataRefused, EnvironmentProblem, IrisError, UsageError
from iris_cli.files.publish import environment_problem

_CHUNK = 1 << 18
_TIMEOUT_S = 60.0

OnProgress = Callable[[int, int | None], None]
"""Called with (bytes so far, total bytes or None)."""


def download(
    url: str, target: Path, *, checksum: str, on_progress: OnProgress | None = None
) -> Path:
    """Fetch `url` into `target`, continuing an earlier partial download where there is one.

    checksum: `sha256:<hex>`, or `md5:<hex>` where the source publishes nothing better.
    The partial file is kept as `.<name>.download` when the connection breaks, so the same call
    goes on where it stopped; a file that is already there with the right checksum is not fetched.
    raises EnvironmentProblem when the server cannot be reached or breaks off or the target cannot
    be written, DataRefused when the checksum differs (the partial file is removed then), UsageError
    for a non-HTTPS URL.
    """
    _require_safe(url)
    algorithm, _, expected = checksum.partition(":")
    partial = target.with_name(f".{target.name}.download")
    try:
        if target.exists() and file_checksum(target, algorithm) == expected:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, partial, on_progress)
        _require_checksum(url, partial, algorithm, expected)
        os.replace(partial, target)
    except OSError as error:
        problem = None if isinstance(error, IrisError) else environment_problem(target, error)
        if problem is None:
            raise
        raise problem from error
    return target


def _require_checksum(url: str, partial: Path, algorithm: str, expected: str) -> None:
    found = file_checksum(partial, algorithm)
    if found != expected:
        partial.unlink()
        raise DataRefused(
            "the downloaded file is not the expected one",
            file=url,
            found=f"{algorithm} {found}",
            expected=f"{algorithm} {expected}",
            fix="run the same line again; if it persists, the source has changed",
        )


def file_checksum(path: Path, algorithm: str = "sha256") -> str:
    """Checksum of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _require_safe(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    loopback = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme == "https" or (parts.scheme == "http" and loopback):
        return
    raise UsageError(
        "only HTTPS downloads are allowed", file=url, found=parts.scheme or "no scheme"
    )


def _fetch(url: str, partial: Path, on_progress: OnProgress | None) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            if have and response.status != 206:  # the server starts over
                have = 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            with partial.open("ab" if have else "wb") as stream:
                while chunk := response.read(_CHUNK):
                    stream.write(chunk)
                    have += len(chunk)
                    if on_progress is not None:
                        on_progress(have, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing left to fetch: the checksum decides
            return
        raise _unreachable(url, f"HTTP {error.code} {error.reason}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _unreachable(url, str(getattr(error, "reason", error))) from error
    except http.client.HTTPException as error:  # IncompleteRead and what is no HTTP at all
        raise _unreachable(url, str(error) or type(error).__name__) from error
    if total is not None and have < total:
        raise _unreachable(url, f"the connection broke off after {have} of {total} bytes")


def _unreachable(url: str, found: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        "the download did not finish",
        file=url,
        found=found,
        fix="run the same line again: it continues where it stopped",
    )
