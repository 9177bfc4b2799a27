from __future__ import annotations

import pickle
import random
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.errors import DataRefused
from iris_cli.training import real
from iris_cli.training.batches import collate, iterate_any, render
from iris_cli.training.catalogue import Case, TrainingSet, read_catalogue
from iris_cli.training.drafts import draw_set
from iris_cli.training.episodes import Episode, EpisodeSampler
from iris_cli.training.settings import (
    CaseForTraining,
    SetForTraining,
    TaskSettings,
    TrainingSettings,
)
from tests.training.stores import (
    NO_INTENSITY,
    SHAPE,
    balls,
    label_map,
    only,
    still,
    training,
    whole,
    write_view,
)

PATCH = 24
CPU = torch.device("cpu")
NO_CASE = cast(Case, None)


def sampler(sets: list[SetForTraining], **changes: object) -> EpisodeSampler:
    return EpisodeSampler(read_catalogue(sets), training(**changes), PATCH)


def same(a: Episode, b: Episode) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Episode)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_an_episode_is_a_function_of_seed_and_index_alone(tmp_path: Path) -> None:
    sets = [balls(tmp_path)]
    first = sampler(sets)
    forwards = [first.episode(g) for g in range(12)]
    other = pickle.loads(pickle.dumps(sampler(sets)))
    np.random.seed(5)
    torch.manual_seed(9)
    backwards = [other.episode(g) for g in reversed(range(12))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert {e.kind for e in forwards} == {"real", "pseudo", "synthetic"}
    assert not same(forwards[3], sampler(sets, seed=1).episode(3))


def test_making_an_episode_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    made = sampler([balls(tmp_path)])
    before = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
    for g in range(8):
        made.episode(g)
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert before[1] == random.getstate()
    assert torch.equal(before[2], torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_make_the_same_episodes_in_the_same_order(tmp_path: Path, workers: int) -> None:
    made = sampler([balls(tmp_path, cases=2)])
    alone = list(iterate_any(made, range(3, 9), device=CPU))
    shared = list(iterate_any(made, range(3, 9), device=CPU, workers=workers))
    assert [e.index for e in shared] == list(range(3, 9))
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_classes_are_shown_by_a_reference_and_annotated_somewhere(tmp_path: Path) -> None:
    made = sampler([balls(tmp_path)])
    counts = Counter()
    for g in range(60):
        e = made.episode(g)
        k, r = len(e.names), len(e.references)
        assert e.query_masks.shape == (k, PATCH, PATCH, PATCH)
        assert e.reference_masks.shape == (r, k, PATCH, PATCH, PATCH)
        voxels = e.reference_masks.flatten(2).sum(dim=2)
        assert bool((voxels[e.reference_valid] >= 8).all())
        counts["lost"] += int((~e.reference_valid.any(dim=0)).sum())
        counts["nothing"] += int(not e.query_valid.any())
        assert not (e.query_valid & ~e.reference_valid.any(dim=0)).any()
        assert torch.isfinite(e.query).all()
        assert torch.isfinite(e.references).all()
        counts[e.kind, k] += 1
        counts["absent"] += int((~e.query_masks.flatten(1).any(dim=1)).sum())
        counts["references", r] += 1
    assert len([key for key in counts if key[0] == "real"]) > 1, "K must vary"
    assert counts["references", 1] > 5
    assert counts["references", 2] > 5
    # The worker judges before the warp, which may lose a class in spite of that, but seldom.
    assert counts["lost"] <= 4
    assert counts["nothing"] <= 2
    assert counts["absent"] > 0, "some class must be absent from its query crop"


def test_query_and_references_come_from_different_subjects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "s"
    for i in range(6):
        write_view(store, f"c{i}", seed=i, subject=f"subject_{i // 2}")
    seen: list[list[str]] = []
    look = real.RealTasks._look

    def spy(self, found, chosen, *rest):
        if not chosen.same_image:
            seen.append([case.subject for case in chosen.cases])
        return look(self, found, chosen, *rest)

    monkeypatch.setattr(real.RealTasks, "_look", spy)
    task = TaskSettings(decoy_share=0, same_image_share=0, references_max=2)
    made = sampler([whole(store)], mixing=only("real"), task=task)
    for g in range(30):
        made.episode(g)
    assert len(seen) >= 30
    assert all(subjects[0] not in subjects[1:] for subjects in seen)


def test_a_set_with_one_subject_supplies_it_twice_in_two_views(tmp_path: Path) -> None:
    made = sampler([balls(tmp_path, cases=1)], mixing=only("real"))
    e = made.episode(0)
    assert e.kind == "real"
    assert not torch.equal(e.query, e.references[0])


def test_images_and_masks_of_real_episodes_lie_on_each_other(tmp_path: Path) -> None:
    made = sampler([balls(tmp_path)], mixing=only("real"), intensity=NO_INTENSITY)
    levels = {"left": 2.0, "right": 4.0}
    checked = 0
    for g in range(40):
        e = made.episode(g)
        images = torch.stack([e.query, *e.references])
        masks = torch.stack([e.query_masks, *e.reference_masks])
        for k, name in enumerate(e.names):
            for image, mask in zip(images, masks, strict=True):
                inner = mask[k] & (
                    torch.nn.functional.avg_pool3d(mask[k][None].float(), 3, 1, 1)[0] > 0.999
                )
                if name in levels and int(inner.sum()) > 20:
                    assert float(image[inner].mean()) == pytest.approx(levels[name], abs=0.35)
                    checked += 1
    assert checked > 30


def test_unions_are_asked_for_and_cover_their_members(tmp_path: Path) -> None:
    task = TaskSettings(decoy_share=0, union_probability=1, class_drop=0, classes_max=6)
    made = sampler([balls(tmp_path)], mixing=only("real"), task=task)
    unions = 0
    for g in range(20):
        e = made.episode(g)
        for k, name in enumerate(e.names):
            parts = name.split("+")
            if len(parts) > 1 and all(part in e.names for part in parts):
                members = [e.query_masks[e.names.index(part)] for part in parts]
                union = torch.stack(members).any(dim=0)
                assert int((union & ~e.query_masks[k]).sum()) == 0
                unions += 1
    assert unions > 3


def test_classes_not_annotated_in_the_query_carry_no_loss(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write_view(store, "a", seed=0)
    write_view(store, "b", seed=1, not_annotated=("left", "both"))
    task = TaskSettings(decoy_share=0, same_image_share=0, union_probability=0.5, class_drop=0)
    made = sampler([whole(store)], mixing=only("real"), task=task)
    names = Counter()
    for g in range(40):
        e = made.episode(g)
        for k, name in enumerate(e.names):
            names[name] += 1
            if "left" in name or "both" in name:
                # Only case a knows it: as query and reference in one, in two views of it.
                assert bool(e.query_valid[k]) == bool(e.reference_valid[:, k].any())
    assert names["left"] > 0
    assert names["right"] > 0


def test_the_ignore_label_is_not_counted(tmp_path: Path) -> None:
    store = tmp_path / "s"
    for i in range(2):
        label = label_map(i)
        label[:, :12] = 9
        write_view(store, f"c{i}", seed=i, label=label, ignore_value=9)
    made = sampler(
        [whole(store)],
        mixing=only("real"),
        geometry=still(),
        intensity=NO_INTENSITY,
    )
    shares = [float(made.episode(g).counted.float().mean()) for g in range(10)]
    assert min(shares) < 0.9
    assert all(share > 0 for share in shares)


def test_mirrored_images_exchange_the_classes_of_a_pair(tmp_path: Path) -> None:
    item = balls(tmp_path, mirror_pairs=(("left", "right"),))
    task = TaskSettings(decoy_share=0, same_image_share=0, union_probability=0, query_holds_class=1)
    made = sampler([item], mixing=only("real"), task=task, geometry=still(), intensity=NO_INTENSITY)
    levels, sides = Counter(), 0
    for g in range(60):
        e = made.episode(g)
        images = torch.stack([e.query, *e.references])
        masks = torch.stack([e.query_masks, *e.reference_masks])
        for image, mask in zip(images, masks, strict=True):
            where = {n: mask[k] for k, n in enumerate(e.names) if int(mask[k].sum()) > 100}
            for name in ("left", "right"):
                if name in where:
                    levels[name, round(float(image[where[name]].median()))] += 1
            if "left" in where and "right" in where:
                x = [torch.nonzero(where[n])[:, 2].float().mean() for n in ("left", "right")]
                assert x[0] < x[1], "what is called left must lie left"
                sides += 1
    # The level goes with the anatomy, so both are met under both names.
    assert min(levels[name, level] for name in ("left", "right") for level in (2, 4)) > 5
    assert sides > 0


def test_nothing_is_mirrored_unless_the_set_says_so(tmp_path: Path) -> None:
    made = sampler([balls(tmp_path)], mixing=only("real"), geometry=still(), intensity=NO_INTENSITY)
    for g in range(20):
        e = made.episode(g)
        for k, name in enumerate(e.names):
            if name in ("left", "right") and int(e.query_masks[k].sum()) > 100:
                level = round(float(e.query[e.query_masks[k]].median()))
                assert level == {"left": 2, "right": 4}[name]


def test_unlabelled_sets_serve_pseudo_episodes_only(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write_view(store, "a", role="unlabelled", labelled=False)
    item = SetForTraining(name="s", store=store, cases=(CaseForTraining(view="a"),))
    made = sampler([item])
    assert made.shares["real"] == 0
    sources = Counter(made.episode(g).source for g in range(30))
    assert set(sources) == {"s", "scene"}


def test_no_possible_kind_of_episode_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write_view(store, "a", role="unlabelled", labelled=False)
    with pytest.raises(DataRefused, match="no episode"):
        sampler([whole(store)], mixing=only("real"))


def test_what_a_device_renders_is_what_a_worker_renders_bit_for_bit(tmp_path: Path) -> None:
    made = sampler([balls(tmp_path)])
    raws = [pickle.loads(pickle.dumps(made.raw_episode(g))) for g in range(6)]
    there = collate(render(raws, CPU))
    here = collate([made.episode(g) for g in range(6)])
    for f in fields(there):
        assert torch.equal(getattr(there, f.name), getattr(here, f.name)), f.name


@pytest.mark.gpu
def test_a_gpu_renders_the_same_up_to_rounding(tmp_path: Path) -> None:
    made = sampler([balls(tmp_path)])
    raws = [made.raw_episode(g) for g in range(12)]
    ours, theirs = (collate(render(raws, device)) for device in (CPU, torch.device("cuda")))
    torch.testing.assert_close(theirs.query.cpu(), ours.query, rtol=0, atol=1e-3)
    torch.testing.assert_close(theirs.references.cpu(), ours.references, rtol=0, atol=1e-3)
    for name in ("query_masks", "reference_masks", "counted"):
        differ = (getattr(theirs, name).cpu() ^ getattr(ours, name)).float().mean()
        assert float(differ) < 1e-4, name


def test_an_episode_in_which_the_warp_loses_everything_carries_no_loss(tmp_path: Path) -> None:
    raw = sampler([balls(tmp_path)], mixing=only("real")).raw_episode(0)
    blind = [replace(look, table=np.zeros_like(look.table)) for look in raw.looks]
    e = replace(raw, looks=tuple(blind)).render(CPU)
    assert not e.reference_valid.any()
    assert not e.query_valid.any()


def test_what_travels_to_a_device_is_small(tmp_path: Path) -> None:
    made = sampler([balls(tmp_path)], mixing=only("real"))
    for g in range(10):
        raw = made.raw_episode(g)
        for look in raw.looks:
            assert look.image.dtype is torch.float16
            assert look.labels.dtype is torch.uint8
            assert look.labels.shape <= SHAPE


@given(
    weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=4),
    cases=st.lists(st.integers(1, 400), min_size=4, max_size=4),
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None)
def test_sets_are_drawn_by_weight_and_size(
    weights: list[float], cases: list[int], temperature: float, seed: int
) -> None:
    """0: all sets alike, 1: by number of cases, between: a compromise; times the weight always."""
    nowhere = Path("none")
    sets = [
        TrainingSet(SetForTraining(name=str(i), store=nowhere, cases=(), weight=w), (NO_CASE,) * n)
        for i, (w, n) in enumerate(zip(weights, cases, strict=False))
    ]
    rng = np.random.default_rng(seed)
    drawn = Counter(draw_set(rng, sets, temperature).name for _ in range(2000))
    sizes = {s.name: s.settings.weight * len(s.cases) ** temperature for s in sets}
    for name, size in sizes.items():
        share = size / sum(sizes.values())
        deviation = (2000 * share * (1 - share)) ** 0.5
        assert abs(drawn[name] - 2000 * share) <= 5 * deviation + 1


def test_a_run_draws_its_sets_by_weight(tmp_path: Path) -> None:
    heavy = balls(tmp_path / "a", weight=9)
    light = balls(tmp_path / "b", weight=1).model_copy(update={"name": "light"})
    made = EpisodeSampler(read_catalogue([heavy, light]), TrainingSettings(mixing=only("real")), 16)
    drawn = Counter(made.raw_episode(g).source for g in range(80))
    assert 55 <= drawn["balls"] <= 79
