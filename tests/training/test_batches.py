from __future__ import annotations

from pathlib import Path

import torch

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
        assert bool(batch.class_valid[i, :own].all())
        assert not batch.class_valid[i, own:].any()
        assert not batch.loss_valid[i, own:].any()
        assert not batch.query_masks[i, own:].any()
        rows = slice(row, row + len(e.references))
        share = batch.share[i]
        assert torch.allclose(share[rows, :own].sum(dim=0), torch.ones(own))
        assert float(share.sum()) == float(share[rows, :own].sum())
        assert not share[rows][~batch.reference_valid[rows]].any()
        row = rows.stop
