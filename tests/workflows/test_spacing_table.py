"""The table of docs/spacing.md against the sets it speaks of."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_conversion.registry import convert
from iris_cli.dataset.building import TransferMode
from iris_cli.planning.presets import PRESETS
from iris_cli.task.spacing import task_spacing
from iris_cli.workflows.plan import plan

PAGE = Path(__file__).resolve().parents[2] / "docs" / "spacing.md"


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_the_rule_gives_what_the_table_says(row: list[str]) -> None:
    native, extent, volume, spacing = map(float, row[2:6])
    small = PRESETS["small"]
    chosen = task_spacing(small.s0, small.patch, native, extent, volume)
    assert chosen.spacing_mm == pytest.approx(spacing, rel=6e-3)
    decided = {
        "extent": "the classes span",
        "smallest class": "the smallest class has",
        "native grid": "the data are not finer",
        "the model's own": "3 mm: the model's own",
    }
    assert decided[row[6]] in chosen.reason


@pytest.mark.real
@pytest.mark.parametrize("name", ["plant_cells", "embryo_nuclei", "spinal_cord", "spleen", "lung"])
def test_the_sets_are_as_the_table_says(name: str, shared_data: Path, tmp_path: Path) -> None:
    convert("info_json", shared_data / name, tmp_path / "raw" / name, mode=TransferMode.LINK)
    found = plan([name], workspace=tmp_path, preset_name="small").plan.sets[name]
    row = next(row for row in rows() if row[0] == name)
    smallest = min(c.volume_mm3 for c in found.fingerprint.classes.values())
    measured = (
        min(found.fingerprint.spacing_mm_min),
        found.fingerprint.extent_mm,
        smallest,
        found.spacing_mm,
    )
    assert measured == pytest.approx([float(cell) for cell in row[2:6]], rel=6e-3)
