"""Downloads from a server on the loopback address: checksum, resume, refusals."""

from __future__ import annotations

import errno
import hashlib
import http.client
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.files.download import download

_BODY = bytes(range(256)) * 4000
_CHECKSUM = "sha256:" + hashlib.sha256(_BODY).hexdigest()


class _Server(http.server.ThreadingHTTPServer):
    break_after: int | None = None
    chunked = False
    requests: list[str | None]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = _BODY[start:]
        self.send_response(206 if wanted else 200)
        limit = self.server.break_after
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(body) + body[:limit])
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if limit is None else body[:limit])

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _url(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/set.tar"


def test_a_file_is_fetched_with_progress_and_not_fetched_twice(
    server: _Server, tmp_path: Path
) -> None:
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "set.tar"
    for _ in range(2):
        download(
            _url(server), target, checksum=_CHECKSUM, on_progress=lambda n, t: seen.append((n, t))
        )
    assert target.read_bytes() == _BODY
    assert seen[-1] == (len(_BODY), len(_BODY))
    assert len(server.requests) == 1


def test_a_broken_download_goes_on_where_it_stopped(server: _Server, tmp_path: Path) -> None:
    target = tmp_path / "set.tar"
    server.break_after = 300_000
    with pytest.raises(EnvironmentProblem, match="did not finish"):
        download(_url(server), target, checksum=_CHECKSUM)
    assert not target.exists()
    server.break_after = None
    download(_url(server), target, checksum=_CHECKSUM)
    assert target.read_bytes() == _BODY
    assert server.requests == [None, "bytes=300000-"]


def test_a_wrong_checksum_is_refused_and_nothing_stays(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="not the expected one"):
        download(_url(server), tmp_path / "set.tar", checksum="md5:" + "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_plain_http_to_the_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="HTTPS"):
        download("http://example.org/set.tar", tmp_path / "set.tar", checksum=_CHECKSUM)


def test_no_server_is_an_environment_problem(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem):
        download("http://127.0.0.1:9/set.tar", tmp_path / "set.tar", checksum=_CHECKSUM)


def test_an_answer_in_pieces_that_breaks_off_goes_on_later(server: _Server, tmp_path: Path) -> None:
    server.break_after, server.chunked = 300_000, True
    target = tmp_path / "set.tar"
    with pytest.raises(EnvironmentProblem, match="did not finish"):
        download(_url(server), target, checksum=_CHECKSUM)
    server.break_after, server.chunked = None, False
    assert download(_url(server), target, checksum=_CHECKSUM).read_bytes() == _BODY


def test_a_server_that_speaks_no_http_is_an_environment_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange(*_: object, **__: object) -> None:
        raise http.client.BadStatusLine("SSH-2.0")

    monkeypatch.setattr("urllib.request.urlopen", strange)
    with pytest.raises(EnvironmentProblem, match="did not finish"):
        download("https://example.org/a", tmp_path / "a", checksum=_CHECKSUM)


def test_a_full_disk_keeps_what_was_fetched(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "set.tar"

    def full(done: int, total: int | None) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(EnvironmentProblem, match="disk is full") as caught:
        download(_url(server), target, checksum=_CHECKSUM, on_progress=full)
    assert caught.value.exit_code == 5
    assert download(_url(server), target, checksum=_CHECKSUM).read_bytes() == _BODY
    assert str(server.requests[1]).startswith("bytes=")
