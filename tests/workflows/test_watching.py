"""Pictures of a run while it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from iris_cli.report.sheet import SheetRow
from iris_cli.training.batches import collate
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.episodes import Episode, EpisodeSampler
from iris_cli.training.log import METRICS
from iris_cli.workflows import watching
from iris_cli.workflows.watching import SHEETS, ContactSheets, ProgressPicture, _row
from tests.training.stores import balls, only, still, training


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[Episode]:
    settings = training(mixing=only("real"), geometry=still())
    catalogue = read_catalogue([balls(tmp_path_factory.mktemp("store"))])
    sampler = EpisodeSampler(catalogue, settings, 32)
    return [sampler.episode(index) for index in range(5)]


def shown(episodes: list[Episode], *, right: bool) -> list[SheetRow]:
    batch = collate(episodes)
    logits = (batch.query_masks.float() - 0.5) * (1 if right else -1)
    return [_row(b, episode, batch, logits) for b, episode in enumerate(episodes)]


def test_a_row_shows_the_slices_where_the_target_is_largest(episodes: list[Episode]) -> None:
    for episode, row in zip(episodes, shown(episodes, right=True), strict=True):
        assert [c.name for c in row.classes] == list(episode.names)
        assert row.reference_masks.any()
        largest = int(np.argmax(episode.query_masks.sum(dim=(1, 2, 3)).numpy()))
        slices = episode.query_masks[largest].sum(dim=(1, 2))
        assert row.truth[largest].sum() == int(slices.max())
        pictures = [picture for volume in episode.references.numpy() for picture in volume]
        assert any(np.array_equal(row.reference, picture) for picture in pictures)


def test_dice_of_a_row_is_of_the_whole_patch(episodes: list[Episode]) -> None:
    assert {c.dice for row in shown(episodes, right=True) for c in row.classes} == {1.0}
    assert max(c.dice or 0.0 for row in shown(episodes, right=False) for c in row.classes) == 0.0


def test_the_last_sheets_are_kept(tmp_path: Path, episodes: list[Episode]) -> None:
    sheets = ContactSheets(tmp_path, kept=2)
    batch = collate(episodes[:1])
    logits = torch.zeros(batch.query_masks.shape)
    for step in (1, 500, 1_000_000):
        sheets.episodes(step, episodes[:1], batch, logits)
    names = sorted(path.name for path in (tmp_path / SHEETS).iterdir())
    assert names == ["step-000500.png", "step-1000000.png"]


def test_the_progress_picture_follows_validations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(watching, "draw_progress", lambda log, picture: drawn.append(picture))
    picture = ProgressPicture(tmp_path)
    picture.close()
    assert drawn == []  # there is no log yet
    (tmp_path / METRICS).write_text("")
    picture.validation(1, {})
    picture.close()
    assert drawn == [tmp_path / "progress.png"] * 2
