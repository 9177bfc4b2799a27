from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from iris_cli.errors import EnvironmentProblem
from iris_cli.training import batches
from iris_cli.training.batches import collate
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.episodes import EpisodeSampler
from tests.training.stores import balls, training


def test_padding_is_invalid_and_shares_add_up_to_one(tmp_path: Path) -> None:
    sampler = EpisodeSampler(read_catalogue([balls(tmp_path)]), training(), 16)
    episodes = [sampler.episode(g) for g in range(6)]
    batch = collate(episodes)
    k = max(len(e.names) for e in episodes)
    n = sum(len(e.references) for e in episodes)
    assert batch.query.shape == (6, 1, 16, 16, 16)
    assert batch.references.shape == (n, 1, 16, 16, 16)
    assert batch.reference_masks.shape == (n, k, 16, 16, 16)
    row = 0
    for i, e in enumerate(episodes):
        own = len(e.names)
        assert torch.equal(batch.class_valid[i, :own], e.reference_valid.any(dim=0))
        assert not batch.class_valid[i, own:].any()
        assert not batch.loss_valid[i, own:].any()
        assert not batch.query_masks[i, own:].any()
        rows = slice(row, row + len(e.references))
        share = batch.share[i]
        assert torch.allclose(share[rows, :own].sum(dim=0), batch.class_valid[i, :own].float())
        assert float(share.sum()) == float(share[rows, :own].sum())
        assert not share[rows][~batch.reference_valid[rows]].any()
        row = rows.stop


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("DataLoader worker (pid(s) 12) exited unexpectedly", EnvironmentProblem),
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", EnvironmentProblem),
        ("Caught RuntimeError in DataLoader worker process 0.\nshapes differ", RuntimeError),
    ],
)
def test_only_a_worker_that_died_is_a_problem_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: type[Exception]
) -> None:
    class Loader:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __class_getitem__(cls, _: object) -> type:
            return cls

        def __iter__(self) -> Iterator[None]:
            raise RuntimeError(text)

    monkeypatch.setattr(batches, "DataLoader", Loader)
    sampler = EpisodeSampler(read_catalogue([balls(tmp_path)]), training(), 16)
    with pytest.raises(kind) as caught:
        next(batches.iterate_any(sampler, range(1), device=torch.device("cpu"), workers=1))
    assert isinstance(caught.value, EnvironmentProblem) == (kind is EnvironmentProblem)
