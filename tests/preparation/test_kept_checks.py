"""A check goes on where it was killed, and never believes an old result of a changed file."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from iris_cli.dataset.raw import RawDataset, read_raw_dataset
from iris_cli.preparation.codes import Code
from iris_cli.preparation.integrity import cache, case, check_dataset
from iris_cli.volume.writing import write_labels
from tests.preparation.raw_sets import blobs, grid, image_file, label_file, make_set


def raw_of(folder: Path) -> RawDataset:
    return read_raw_dataset(folder, strict=False)


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that the check opens."""
    opened: list[str] = []
    read = case.read_image

    def noting(path: Path) -> object:
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr(case, "read_image", noting)
    return opened


def test_a_second_check_reads_only_what_changed(tmp_path: Path, read_files: list[str]) -> None:
    folder = make_set(tmp_path / "set", ("a", "b", "c"))
    first = check_dataset(raw_of(folder), cache=tmp_path / "kept")
    assert len(read_files) == 3
    assert check_dataset(raw_of(folder), cache=tmp_path / "kept") == first
    assert len(read_files) == 3
    write_labels(label_file(folder, "b"), blobs(1) * 0, grid())
    changed = check_dataset(raw_of(folder), cache=tmp_path / "kept")
    assert read_files[3:] == ["b_0000.nii.gz"]
    assert [(f.code, f.case) for f in changed.findings] == [(Code.EMPTY_LABEL, "b")]


def test_a_touched_or_copied_file_is_known_by_its_content(
    tmp_path: Path, read_files: list[str]
) -> None:
    folder = make_set(tmp_path / "set", ("a", "b"))
    first = check_dataset(raw_of(folder), cache=tmp_path / "kept")
    read_files.clear()
    os.utime(image_file(folder, "a"), ns=(1, 1))
    assert check_dataset(raw_of(folder), cache=tmp_path / "kept") == first
    assert read_files == []


def test_a_file_of_equal_size_and_time_is_not_taken_for_the_old_one(
    tmp_path: Path, read_files: list[str]
) -> None:
    """`cp -p` and archives bring old times back."""
    folder = make_set(tmp_path / "set", ("a", "b"))
    check_dataset(raw_of(folder), cache=tmp_path / "kept")
    path = image_file(folder, "a")
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(bytes(content))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    report = check_dataset(raw_of(folder), cache=tmp_path / "kept")
    assert [(f.code, f.case) for f in report.findings] == [(Code.UNREADABLE, "a")]


def test_other_declarations_and_versions_check_anew(
    tmp_path: Path, read_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_set(tmp_path / "set", ("a", "b"))
    check_dataset(raw_of(folder), cache=tmp_path / "kept")
    make_set(folder, ("a", "b"), labels={"one": 1, "two": 3})
    report = check_dataset(raw_of(folder), cache=tmp_path / "kept")
    assert {f.code for f in report.errors} == {Code.UNDECLARED_VALUE}
    read_files.clear()
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert check_dataset(raw_of(folder), cache=tmp_path / "kept") == report
    assert len(read_files) == 2


def test_a_kept_result_that_is_torn_or_foreign_is_no_result(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", ("a", "b"))
    first = check_dataset(raw_of(folder), cache=tmp_path / "kept")
    (tmp_path / "kept" / "set" / "a.json").write_text('{"format": "iris-rec')
    (tmp_path / "kept" / "set" / "b.json").write_text('{"case": "b", "content": {}}')
    assert check_dataset(raw_of(folder), cache=tmp_path / "kept") == first


def test_kill_9_loses_only_what_was_running(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [f"c{i}" for i in range(12)])
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from iris_cli.dataset.raw import read_raw_dataset
        from iris_cli.preparation.integrity import case, check_dataset
        read = case.read_image
        def slowly(path):
            time.sleep(0.1)
            return read(path)
        case.read_image = slowly
        raw = read_raw_dataset(Path({str(folder)!r}), strict=False)
        check_dataset(raw, cache=Path({str(tmp_path / "kept")!r}))
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "kept").glob("set/c*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = sorted((tmp_path / "kept").glob("set/c*.json"))
    assert 3 <= len(kept) < 12
    times = {path: path.stat().st_mtime_ns for path in kept}
    report = check_dataset(raw_of(folder), cache=tmp_path / "kept")
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    shutil.rmtree(tmp_path / "kept")
    assert check_dataset(raw_of(folder), cache=tmp_path / "kept") == report


@pytest.mark.parametrize(
    ("call", "trouble"),
    [
        ("iris_cli.volume.payload.np.empty", MemoryError()),
        ("pathlib.Path.open", OSError(errno.EIO, "Input/output error")),
    ],
)
def test_trouble_of_the_machine_is_not_kept_as_trouble_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, trouble: Exception
) -> None:
    raw = raw_of(make_set(tmp_path / "set", ("a", "b")))
    read = case.read_image

    def failing(*arguments: object, **options: object) -> object:
        raise trouble

    def reading_fails(path: Path) -> object:
        with pytest.MonkeyPatch.context() as during:
            during.setattr(call, failing)
            return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(case, "read_image", reading_fails)
        report = check_dataset(raw, cache=tmp_path / "kept")
    assert [(f.code, f.case) for f in report.findings] == [
        (Code.CHECK_FAILED, "a"),
        (Code.CHECK_FAILED, "b"),
    ]
    assert not check_dataset(raw, cache=tmp_path / "kept").findings
