"""Payloads: exactly the bytes a header claims, or a refusal that says why."""

from __future__ import annotations

import errno
import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.errors import DataRefused
from iris_cli.volume import payload
from iris_cli.volume.payload import InflatedFile, Packing, check_claim, opened, read_claimed

PATH = Path("case.nii.gz")


def stream(content: bytes, packing: Packing) -> InflatedFile:
    return InflatedFile(io.BytesIO(content), PATH, packing)


def pack(content: bytes, packing: Packing) -> bytes:
    if packing is Packing.RAW:
        return content
    return zlib.compress(content) if packing is Packing.ZLIB else gzip.compress(content)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=3000),
    st.sampled_from(Packing),
    st.integers(1, 70),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_bytes_come_in_order_whatever_the_sizes_of_the_steps(
    content: bytes, packing: Packing, step: int, first: int, skipped: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(payload, "READ_BYTES", step)
        patched.setattr(payload, "INFLATE_BYTES", step + 1)
        source = stream(pack(content, packing), packing)
        assert source.read(first) == content[:first]
        assert source.skip(skipped) == len(content[first : first + skipped])
        rest = content[first + skipped :]
        assert read_claimed(source, len(rest), PATH).tobytes() == rest


@pytest.mark.parametrize("library", ["fast", "zlib"])
@pytest.mark.parametrize("packing", Packing)
def test_more_and_less_than_claimed_are_refused(
    packing: Packing, library: str, monkeypatch: Any
) -> None:
    if library == "zlib":
        monkeypatch.setattr(payload, "DEFLATE", zlib)
    content = bytes(range(100))
    with pytest.raises(DataRefused, match="ends before its voxels"):
        read_claimed(stream(pack(content, packing), packing), 101, PATH)
    with pytest.raises(DataRefused, match="more voxel data"):
        read_claimed(stream(pack(content, packing), packing), 99, PATH)


@pytest.mark.parametrize("library", ["fast", "zlib"])
@pytest.mark.parametrize(
    ("packing", "content"),
    [
        (Packing.GZIP, gzip.compress(b"abc")[:-1]),
        (Packing.GZIP, gzip.compress(b"abc") + gzip.compress(b"")[:-3]),
        (Packing.ZLIB, zlib.compress(b"abc")[:-4]),
        (Packing.ZLIB, b"\x78\xbb" + zlib.compress(b"abc")[2:]),  # asks for a dictionary
    ],
)
def test_streams_without_their_end_are_refused(
    packing: Packing, content: bytes, library: str, monkeypatch: Any
) -> None:
    if library == "zlib":
        monkeypatch.setattr(payload, "DEFLATE", zlib)
    with pytest.raises(DataRefused):
        read_claimed(stream(content, packing), 3, PATH)


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(DataRefused, match="the file is empty"):
        read_claimed(stream(b"", Packing.GZIP), 3, PATH)


def test_a_wrong_checksum_is_refused_after_the_last_byte() -> None:
    content = bytearray(gzip.compress(b"abc"))
    content[-5] ^= 1
    with pytest.raises(DataRefused, match="damaged"):
        read_claimed(stream(bytes(content), Packing.GZIP), 3, PATH)


@pytest.mark.parametrize("packing", [Packing.GZIP, Packing.ZLIB])
@pytest.mark.parametrize("extra", [b"\0", b"x", b"\x1f", b"junk" * 99])
def test_nothing_may_follow_a_stream(packing: Packing, extra: bytes) -> None:
    with pytest.raises(DataRefused, match="bytes follow"):
        read_claimed(stream(pack(b"abc", packing) + extra, packing), 3, PATH)


def test_claims_are_compared_with_the_size_of_the_file() -> None:
    check_claim(PATH, 1000, 1000, Packing.RAW)
    check_claim(PATH, 1032 * 50, 50, Packing.GZIP)
    for claimed, words in ((1001, "ends before"), (999, "more voxel data")):
        with pytest.raises(DataRefused, match=words):
            check_claim(PATH, claimed, 1000, Packing.RAW)
    with pytest.raises(DataRefused, match="more voxels than the file can hold"):
        check_claim(PATH, 1032 * 50 + 1, 50, Packing.GZIP)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "case.nii.gz"
    path.touch()

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataRefused, match="may not be read") as refused, opened(path):
        pass
    assert refused.value.file == str(path)
