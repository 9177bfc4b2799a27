"""statistics.csv out of receipts, also of earlier ones and beside other processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_cli.execution.receipts import Receipt, write_receipt
from iris_cli.inference import statistics_file
from iris_cli.inference.statistics_file import write_statistics


def add(folder: Path, case: str, **content: object) -> None:
    (folder / f"{case}.nii.gz").write_bytes(b"")
    output = {"sha256": "0", "voxels": {"liver": 8}, "confidence": {"liver": 0.9}}
    write_receipt(
        folder / ".iris" / f"{case}.json", Receipt(case=case, content={"output": output, **content})
    )


def lines(folder: Path) -> list[str]:
    return write_statistics(folder, folder / ".iris").read_text().splitlines()


def test_an_earlier_receipt_has_a_row_without_what_it_lacks(tmp_path: Path) -> None:
    add(tmp_path, "a")
    measured = {
        "volume_ml": 0.5,
        "mean_intensity": -3.25,
        "components": 2,
        "touches_border": True,
    }
    add(
        tmp_path,
        "b, c",
        classes={"liver": measured},
        likeness={"liver": {"token_distance": 0.04, "limit": 0.1}},
        quality={"liver": {"cut": "x", "low": "y"}},
    )
    (tmp_path / ".iris" / "broken.json").write_text("{")
    # As it is read again before it gets its name, or of a process that was killed then.
    half = tmp_path / ".iris" / ".a.json.999999999-0badcafe-0000000.partial.json"
    half.write_bytes((tmp_path / ".iris" / "a.json").read_bytes())
    assert lines(tmp_path) == [
        ",".join(statistics_file.COLUMNS),
        "a,liver,8,,,,,0.9,,",
        '"b, c",liver,8,0.5,-3.25,2,True,0.9,0.04,cut; low',
    ]
    (tmp_path / "a.nii.gz").unlink()
    assert len(lines(tmp_path)) == 2


def test_a_case_that_another_process_finishes_meanwhile_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, "a")
    publish = statistics_file.publish_text

    def slowly(path: Path, text: str) -> Path:
        if not (tmp_path / "b.nii.gz").exists():
            add(tmp_path, "b")
        return publish(path, text)

    monkeypatch.setattr(statistics_file, "publish_text", slowly)
    assert [line[:2] for line in lines(tmp_path)[1:]] == ["a,", "b,"]
