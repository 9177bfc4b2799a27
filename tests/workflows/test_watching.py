"""Pictures of a run while it trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from iris_cli.errors import Interrupted
from iris_cli.report.sheet import SheetRow
from iris_cli.training.batches import collate
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.episodes import Episode, EpisodeSampler
from iris_cli.training.log import METRICS
from iris_cli.training.observers import Observer, StepReport
from iris_cli.workflows import watching
from iris_cli.workflows.watching import (
    SHEETS,
    ContactSheets,
    Expendable,
    ProgressPicture,
    _row,
)
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
    return [_row(episode, logits[b]) for b, episode in enumerate(episodes)]


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


def test_dice_of_a_row_leaves_out_voxels_that_do_not_count(episodes: list[Episode]) -> None:
    episode = episodes[0]
    ignored = torch.zeros_like(episode.counted)
    ignored[0] = True
    predicted = episode.query_masks | ignored
    row = _row(replace(episode, counted=~ignored), predicted.float() - 0.5)
    assert {c.dice for c in row.classes} == {1.0}


def test_a_row_of_an_episode_that_shows_nothing(episodes: list[Episode]) -> None:
    """Every class is lost in the warp, and nothing is predicted."""
    episode = episodes[0]
    lost = replace(
        episode,
        query_masks=torch.zeros_like(episode.query_masks),
        reference_masks=torch.zeros_like(episode.reference_masks),
        reference_valid=torch.zeros_like(episode.reference_valid),
        query_valid=torch.zeros_like(episode.query_valid),
    )
    row = _row(lost, -torch.ones(episode.query_masks.shape))
    assert {c.dice for c in row.classes} == {None}
    assert np.array_equal(row.reference, episode.references[0, 16])
    assert not row.truth.any()


def test_a_name_is_no_formula(tmp_path: Path, episodes: list[Episode]) -> None:
    name = "a $\\formula$"
    episode = replace(episodes[0], names=(name, *episodes[0].names[1:]), source=name)
    batch = collate([episode])
    logits = torch.zeros(batch.query_masks.shape)
    run = tmp_path / name
    run.mkdir()
    ContactSheets(run).episodes(1, [episode], batch, logits)
    assert (run / SHEETS / "step-000001.png").exists()


class Broken(Observer):
    """Counts what it is told, and fails."""

    told = closed = 0

    def step(self, report: StepReport) -> None:
        self.told += 1
        raise ValueError("cannot draw")

    def close(self) -> None:
        self.closed += 1


def test_an_observer_that_fails_is_left_out_with_one_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Broken()
    expendable = Expendable(broken)
    for _ in range(3):
        expendable.step(None)  # type: ignore[arg-type]
    expendable.close()
    assert (broken.told, broken.closed) == (1, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "Broken failed and is left out: cannot draw"
    ]


def test_a_second_interrupt_is_no_failed_picture() -> None:
    class Interrupting(Observer):
        def step(self, report: StepReport) -> None:
            raise Interrupted("interrupted twice")

    with pytest.raises(Interrupted):
        Expendable(Interrupting()).step(None)  # type: ignore[arg-type]


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
