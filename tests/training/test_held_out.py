"""Tripwires: a held-out class, set and test case leave no trace in episodes, plan or store.

The held-out bar has a label value and an intensity that nothing else has, so that it gives itself
away wherever it turns up.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from iris_cli.dataset.raw import write_dataset_json
from iris_cli.errors import IrisError
from iris_cli.planning.plan import Plan
from iris_cli.planning.training_sets import sets_for_training
from iris_cli.preparation.store import open_case
from iris_cli.training import looks, pseudo, synthetic
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.episodes import EpisodeSampler
from iris_cli.training.settings import IntensitySettings, SetForTraining, TaskSettings
from iris_cli.training.views import Frame, positions, sample_nearest
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image, write_labels
from iris_cli.workflows.plan import plan
from iris_cli.workflows.preprocess import preprocess
from tests.training.stores import (
    NO_INTENSITY,
    SHAPE,
    label_map,
    only,
    still,
    training,
    whole,
    write_view,
)

PATCH = 24
BAR = 77
GLARE = 60.0
TABLE = {"left": (1,), "right": (2,), "bar": (BAR,), "both": (1, 2), "all": (1, 2, BAR)}
MANY_UNIONS = TaskSettings(union_probability=0.8, classes_max=6, references_max=2)


def glaring(folder: Path, *, cases: int = 3) -> SetForTraining:
    """Balls with a held-out bar of value 77 that outshines everything."""
    store = folder / "glaring"
    for i in range(cases):
        label = label_map(i)
        label[label == 3] = BAR
        levels = np.zeros(BAR + 1, np.float32)
        levels[[1, 2, BAR]] = 2.0, 4.0, GLARE
        write_view(store, f"case_{i}", seed=i, label=label, table=TABLE, levels=levels)
    return whole(store, held_out_classes=("bar",))


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Fail where a map of targets is made that shows the bar; counts what was looked at."""
    seen: Counter[str] = Counter()
    number, without = looks.number_labels, pseudo.PseudoTasks._without_held_out

    def numbers_of(label, columns):
        numbers, table = number(label, columns)
        assert all(BAR not in values for values in columns)
        assert not table[numbers.numpy()[label == BAR]].any()
        seen["label maps"] += 1
        seen["label maps with the bar"] += int((label == BAR).any())
        return numbers, table

    def regions_of(self, case, base, regions):
        kept = without(self, case, base, regions)
        seen["regions rejected"] += len(regions) - len(kept)
        edge = pseudo.base_edge(self.patch)
        label = torch.from_numpy(case.volume.label().astype(np.int64))
        where = positions(base, edge)
        bar = sample_nearest(label, Frame((0.0, 0.0, 0.0)), where).numpy() == BAR
        for region in kept:
            both = np.count_nonzero(region & bar)
            assert both <= 0.1 * min(np.count_nonzero(region), np.count_nonzero(bar) or np.inf)
        return kept

    monkeypatch.setattr(looks, "number_labels", numbers_of)
    monkeypatch.setattr(synthetic, "number_labels", numbers_of)
    monkeypatch.setattr(pseudo.PseudoTasks, "_without_held_out", regions_of)
    return seen


@pytest.mark.parametrize("draws", [100, pytest.param(4000, marks=pytest.mark.slow)])
def test_a_held_out_class_is_in_no_target_of_any_kind(
    tmp_path: Path, wires: Counter[str], draws: int
) -> None:
    sampler = EpisodeSampler(
        read_catalogue([glaring(tmp_path)]),
        training(task=MANY_UNIONS, intensity=IntensitySettings()),
        PATCH,
    )
    kinds: Counter[str] = Counter()
    for g in range(draws):
        raw = sampler.raw_episode(g)
        kinds[raw.source] += 1
        for name in (*raw.names, *(key or "" for key in raw.keys)):
            assert "bar" not in name
            assert "all" not in name
    assert set(kinds) == {"glaring", "scene", "repaint:glaring"}
    assert wires["label maps with the bar"] > draws / 4
    assert wires["regions rejected"] > draws / 100, "the bar outshines all: regions must hit it"


@pytest.mark.parametrize(("kind", "allowed"), [("real", 0.01), ("pseudo", 0.1)])
@pytest.mark.parametrize("draws", [40, pytest.param(800, marks=pytest.mark.slow)])
def test_masks_of_rendered_episodes_do_not_lie_on_the_held_out_class(
    tmp_path: Path, kind: str, allowed: float, draws: int
) -> None:
    """Where the image glares is the bar, whatever the episode was turned and bent by."""
    sampler = EpisodeSampler(
        read_catalogue([glaring(tmp_path)]),
        training(mixing=only(kind), task=MANY_UNIONS, intensity=NO_INTENSITY),
        PATCH,
    )
    shown = shared = asked = 0
    for g in range(draws):
        e = sampler.episode(g)
        images = torch.stack([e.query, *e.references])
        masks = torch.stack([e.query_masks, *e.reference_masks])
        bar = images > GLARE / 2
        if e.kind == kind:
            shown += int(bar.flatten(1).any(dim=1).sum())
            shared += int((masks & bar[:, None]).sum())
            asked += int(masks.sum())
    assert shown > draws / 4
    assert shared <= allowed * asked


def test_the_catalogue_knows_no_voxel_of_a_held_out_class(tmp_path: Path) -> None:
    for case in read_catalogue([glaring(tmp_path)]).sets[0].cases:
        assert set(case.classes) == {"left", "right", "both"}
        label = case.volume.label()
        for item in case.classes.values():
            assert BAR not in item.values
            assert not (label[tuple(item.points.T)] == BAR).any()


def test_cases_of_role_test_and_validate_are_never_opened(tmp_path: Path) -> None:
    """They lie in the same store, and are spoiled there: whoever opened one would fail."""
    roles = {"c2": "test", "c3": "validate"}
    raw_set(tmp_path / "raw" / "balls", bar=slice(18, 21), held_out=[], roles=roles)
    made = planned(tmp_path)
    preprocess(made, workspace=tmp_path)
    (item,) = sets_for_training(made, tmp_path)
    for name, role in roles.items():
        write_view(item.store, name, role=role)
        for kind in ("image", "label"):
            path = item.store / f"{name}.{kind}.b2nd"
            path.write_bytes(b"\0" * path.stat().st_size)
        with pytest.raises(IrisError):
            open_case(item.store, name).image()
    catalogue = read_catalogue([item])
    assert {case.name for case in catalogue.sets[0].cases} == {"c0", "c1"}
    sampler = EpisodeSampler(catalogue, training(), PATCH)
    for g in range(30):
        sampler.raw_episode(g)


def raw_set(
    folder: Path, *, bar: slice, held_out: list[str], roles: dict[str, str] | None = None
) -> Path:
    """Four cases in nnU-Net's form; the bar's length along x is the caller's."""
    for i in range(4):
        label = label_map(i)
        label[label == 3] = 0
        label[20:23, 5:25, bar] = 3
        image = 100.0 * label + np.random.default_rng(i).standard_normal(SHAPE)
        grid = Grid.from_spacing(SHAPE, (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
        write_image(folder / "imagesTr" / f"c{i}_0000.nii.gz", image.astype(np.float32), grid)
        write_labels(folder / "labelsTr" / f"c{i}.nii.gz", label, grid)
    write_dataset_json(
        folder,
        channel_names={"0": "CT"},
        labels={"background": 0, "left": 1, "right": 2, "bar": 3},
        num_training=4,
        file_ending=".nii.gz",
        iris={"held_out_classes": held_out, "roles": roles or {"c3": "validate"}},
    )
    return folder


def planned(workspace: Path, **options: object) -> Plan:
    return plan(workspace=workspace, preset_name="tiny", **options).plan


def test_a_held_out_class_is_in_no_statistic_of_a_plan(tmp_path: Path) -> None:
    plans = []
    for name, bar in (("short", slice(18, 21)), ("long", slice(0, 40))):
        workspace = tmp_path / name
        raw_set(workspace / "raw" / "balls", bar=bar, held_out=["bar"])
        plans.append(planned(workspace))
    short, long = (p.sets["balls"] for p in plans)
    assert set(short.fingerprint.classes) == {"left", "right"}
    assert short.fingerprint.classes == long.fingerprint.classes
    assert short.fingerprint.extent_mm == long.fingerprint.extent_mm
    assert short.spacing_mm == long.spacing_mm
    assert not any("'bar'" in reason for reason in plans[0].reasons.values())


def test_held_out_sets_are_never_opened(tmp_path: Path) -> None:
    raw_set(tmp_path / "raw" / "ours", bar=slice(18, 21), held_out=[])
    hidden = raw_set(tmp_path / "raw" / "hidden", bar=slice(18, 21), held_out=[])
    for path in hidden.rglob("*.*"):
        path.write_bytes(b"opened")
    made = planned(tmp_path, held_out_sets=["hidden"])
    assert set(made.sets) == {"ours"}
    preprocess(made, workspace=tmp_path)
    sampler = EpisodeSampler(
        read_catalogue(sets_for_training(made, tmp_path)), training(geometry=still()), 16
    )
    sources = {sampler.raw_episode(g).source for g in range(40)}
    assert "ours" in sources
    assert not any("hidden" in source for source in sources)
    with pytest.raises(IrisError):
        planned(tmp_path, sets=["hidden"])
