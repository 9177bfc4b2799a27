"""The memory bank: what it remembers, in which order, and that it goes on where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iris_cli.network.config import NetworkConfig
from iris_cli.training.bank import MemoryBank, Sighting, sightings
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.episodes import EpisodeSampler
from tests.training.stores import balls, only, training

TINY = NetworkConfig.tiny()


def seen(episode: int, row: int, key: str, value: float) -> Sighting:
    shapes = [(TINY.tokens, TINY.stage_channels(i)) for i in range(TINY.stages)]
    return Sighting(episode, row, key, tuple(torch.full(shape, value) for shape in shapes))


def value_of(bank: MemoryBank, key: str) -> float:
    state = bank.state()
    return float(state["tokens"][0][state["names"].index(key)].mean())


def test_the_first_tokens_are_taken_whole_and_soon_forgotten() -> None:
    bank = MemoryBank(TINY, 0.999)
    bank.update([seen(0, 0, "a/x", 100.0)])
    assert value_of(bank, "a/x") == 100.0
    for episode in range(1, 60):
        bank.update([seen(episode, 0, "a/x", 1.0)])
    assert value_of(bank, "a/x") == pytest.approx(1.0, abs=1e-3)
    assert bank.counts == {"a/x": 60}


def test_later_ones_move_the_average_by_the_decay() -> None:
    bank = MemoryBank(TINY, 0.5)
    for episode, value in enumerate([0.0] * 30 + [1.0]):
        bank.update([seen(episode, 0, "a/x", value)])
    assert value_of(bank, "a/x") == pytest.approx(0.5)


def test_parts_and_ranks_give_what_one_process_gives() -> None:
    items = [seen(e, k, f"a/{k % 2}", 10.0 * e + k) for e in range(4) for k in range(3)]
    together, apart = MemoryBank(TINY, 0.999), MemoryBank(TINY, 0.999)
    together.update(items)
    apart.update([*items[6:], *items[:6]])
    assert_equal(together, apart)


def test_a_bank_goes_on_bit_for_bit_from_its_state() -> None:
    straight, first, second = (MemoryBank(TINY, 0.999) for _ in range(3))
    items = [seen(e, 0, f"a/{e % 3}", 0.1 * e) for e in range(9)]
    for item in items:
        straight.update([item])
    for item in items[:5]:
        first.update([item])
    second.load_state(first.state())
    for item in items[5:]:
        second.update([item])
    assert_equal(straight, second)
    assert MemoryBank(TINY, 0.9).state()["tokens"][0].shape == (0, TINY.tokens, 16)


def test_only_annotated_classes_of_real_episodes_have_a_key(tmp_path: Path) -> None:
    data = balls(tmp_path)
    for kind in ("real", "pseudo", "synthetic"):
        sampler = EpisodeSampler(read_catalogue([data]), training(mixing=only(kind)), 32)
        for episode in (sampler.episode(g) for g in range(8)):
            for name, key in zip(episode.names, episode.keys, strict=True):
                single = episode.kind == "real" and "+" not in name
                assert key == (f"balls/{name}" if single else None)
                assert key is None or "bar" not in key


def test_instance_labels_have_no_key(tmp_path: Path) -> None:
    data = balls(tmp_path, pairing="image")
    sampler = EpisodeSampler(read_catalogue([data]), training(mixing=only("real")), 32)
    assert {key for g in range(4) for key in sampler.episode(g).keys} == {None}


def test_a_class_without_a_reference_and_padding_are_left_out(tmp_path: Path) -> None:
    sampler = EpisodeSampler(read_catalogue([balls(tmp_path)]), training(mixing=only("real")), 32)
    episode = sampler.episode(0)
    k = len(episode.names)
    episode = replace(episode, keys=tuple(f"balls/{i}" for i in range(k)))
    padded = [torch.ones(1, k + 2, TINY.tokens, TINY.stage_channels(i)) for i in range(3)]
    assert [s.key for s in sightings([episode], padded)] == list(episode.keys)
    hidden = replace(episode, reference_valid=torch.zeros_like(episode.reference_valid))
    assert sightings([hidden], padded) == []


def assert_equal(one: MemoryBank, other: MemoryBank) -> None:
    a, b = one.state(), other.state()
    assert (a["names"], a["counts"]) == (b["names"], b["counts"])
    assert all(torch.equal(x, y) for x, y in zip(a["tokens"], b["tokens"], strict=True))
