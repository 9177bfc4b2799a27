"""R3: cut and flipped files are refused or voxel-identical; headers lie and gain nothing."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from iris_cli.errors import DataRefused
from iris_cli.volume import payload
from iris_cli.volume.reading import Volume, read_grid, read_image
from tests.volume.examples import TILTS, forty_eight_axes, itk_image, oriented_grid, save_nifti

SHAPE = (8, 14, 16)
ENDINGS = (".nii.gz", ".nrrd", ".mha")


def smooth_volume() -> np.ndarray[Any, Any]:
    """Compresses about as real images do."""
    z, y, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    noise = np.random.default_rng(5).integers(0, 4, SHAPE)
    return (50 * np.sin(x / 5) * np.cos(y / 7) + 3 * z + noise).astype(np.int16)


def make(folder: Path, ending: str) -> Path:
    grid = oriented_grid(forty_eight_axes()[9], TILTS["oblique"], SHAPE)
    path = folder / f"whole{ending}"
    if ending == ".nii.gz":
        return save_nifti(path, smooth_volume(), grid.affine)
    SimpleITK.WriteImage(itk_image(smooth_volume(), grid.affine), str(path), True)
    return path


def payload_start(path: Path) -> int:
    """Where the checksummed bytes begin."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        flags = content[3]
        return content.index(b"\0", 10) + 1 if flags & 8 else 10
    if path.suffix == ".nrrd":
        return content.index(b"\n\n") + 2 + 10
    return content.index(b"LOCAL\n") + 6


def expect_refused_or_same(path: Path, content: bytes, whole: Volume) -> bool:
    """Whether the changed file was refused."""
    path.write_bytes(content)
    try:
        volume = read_image(path)
    except DataRefused:
        return True
    np.testing.assert_array_equal(volume.array, whole.array)
    assert volume.grid == whole.grid
    return False


def truncations(content: bytes, count: int) -> Iterator[bytes]:
    rng = np.random.default_rng(11)
    near_the_end = range(1, 13)
    anywhere = rng.integers(13, len(content) + 1, count - len(near_the_end))
    for cut in [*near_the_end, *anywhere.tolist()]:
        yield content[:-cut]


def flips(content: bytes, start: int, count: int) -> Iterator[bytes]:
    rng = np.random.default_rng(12)
    trailer = [8 * (len(content) - back) + bit for back in range(1, 9) for bit in (0, 7)]
    anywhere = rng.integers(8 * start, 8 * len(content), count - len(trailer))
    for bit in [*trailer, *anywhere.tolist()]:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def damage_everywhere(source: Path, folder: Path, times: int = 300) -> None:
    whole = read_image(source)
    content = source.read_bytes()
    target = folder / f"damaged{''.join(source.suffixes[-2:])}"
    cut = [expect_refused_or_same(target, bad, whole) for bad in truncations(content, times)]
    assert all(cut)
    start = payload_start(source)
    flipped = [expect_refused_or_same(target, bad, whole) for bad in flips(content, start, times)]
    # A few bits are padding between the last deflate block and the checksum.
    assert sum(flipped) >= times - 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_cut_and_flipped_files_are_refused_or_identical(tmp_path: Path, ending: str) -> None:
    damage_everywhere(make(tmp_path, ending), tmp_path)


def test_zlib_finds_the_same_damage(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(payload, "DEFLATE", zlib)
    damage_everywhere(make(tmp_path, ".nii.gz"), tmp_path, times=60)


@pytest.mark.real
@pytest.mark.parametrize("ending", ENDINGS)
def test_real_files_cut_and_flipped(tmp_path: Path, shared_data: Path, ending: str) -> None:
    if ending == ".nii.gz":
        source = sorted((shared_data / "hippocampus" / "images").glob("*.nii.gz"))[0]
    elif ending == ".nrrd":
        source = shared_data / "nrrd_tumour" / "images" / "breast1.nrrd"
    else:
        image = SimpleITK.ReadImage(str(shared_data / "nrrd_tumour" / "images" / "breast1.nrrd"))
        source = tmp_path / "whole.mha"
        SimpleITK.WriteImage(image, str(source), True)
    damage_everywhere(source, tmp_path)


# Headers


def plain_and_packed(folder: Path) -> list[tuple[Path, int, Callable[[bytes], bytes]]]:
    """Files whose first bytes are the header, its length, and how a changed one is stored."""
    nifti = save_nifti(folder / "a.nii", smooth_volume(), np.diag([1.0, 2, 3, 1]))
    packed = folder / "b.nii.gz"
    packed.write_bytes(nifti.read_bytes())
    files: list[tuple[Path, int, Callable[[bytes], bytes]]] = [
        (nifti, 352, bytes),
        (packed, 352, lambda content: gzip.compress(content, 1)),
    ]
    for name in ("c.nrrd", "d.mha"):
        for compressed in (False, True):
            path = folder / f"{compressed}-{name}"
            SimpleITK.WriteImage(itk_image(smooth_volume(), np.eye(4)), str(path), compressed)
            files.append((path, payload_start(path), bytes))
    return files


def test_flipped_headers_give_no_traceback_and_no_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(13)
    for path, header_bytes, store in plain_and_packed(tmp_path):
        content = path.read_bytes()
        refused = 0
        for _ in range(120):
            flipped = bytearray(content)
            for bit in rng.integers(0, 8 * header_bytes, rng.integers(1, 4)):
                flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(store(bytes(flipped)))
            limit = max(payload.DEFLATE_RATIO * path.stat().st_size, 4 * len(content))
            refused += not read_within(path, limit)
        assert refused > 15, path


def read_within(path: Path, limit: int) -> bool:
    """Whether the file was read; nothing but DataRefused may come out, and no more memory used."""
    tracemalloc.start()
    try:
        volume = read_image(path)
    except DataRefused:
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit + (4 << 20), (path, peak)
    assert volume.array.size * volume.array.itemsize <= limit
    assert read_grid(path) == volume.native
    return True


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_bomb_inflates_no_further_than_its_header_claims(tmp_path: Path, ending: str) -> None:
    """50 MB of zeros behind a header of 24 voxels."""
    shape, zeros = (4, 3, 2), bytes(50_000_000)
    if ending == ".nii.gz":
        honest = save_nifti(tmp_path / "a.nii", np.zeros(shape, np.uint8), np.eye(4))
        bomb = gzip.compress(honest.read_bytes() + zeros, 1)
    else:
        honest = tmp_path / f"a{ending}"
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(np.zeros(shape, np.uint8)), str(honest), True
        )
        header = honest.read_bytes()[: honest.read_bytes().rindex(b"\n", 0, payload_start(honest))]
        packed = gzip.compress(zeros, 1) if ending == ".nrrd" else zlib.compress(zeros, 1)
        old = b"CompressedDataSize = 10"
        bomb = header.replace(old, f"CompressedDataSize = {len(packed)}".encode()) + b"\n" + packed
    path = tmp_path / f"bomb{ending}"
    path.write_bytes(bomb)
    assert not read_within(path, 1 << 20)
