"""What is not the mask must not tell the class: place in the episode, K, order of references."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from iris_cli.training import real
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.drafts import Draft
from iris_cli.training.settings import SetForTraining, TaskSettings
from tests.training.stores import SHAPE, still, training, whole, write_view

CLASSES = ("a", "b", "c", "d")
TASK = TaskSettings(
    classes_max=4, class_drop=0.3, union_probability=0.3, references_max=2, same_image_share=0
)
# The seeds are fixed, so this is no matter of luck: a leak gives a p of nearly nothing.
P_MIN = 1e-3


def cubes(folder: Path) -> SetForTraining:
    """Four classes of one size close together: only chance may choose between them."""
    label = np.zeros(SHAPE, np.uint8)
    for value, (y, x) in enumerate(((10, 15), (10, 19), (14, 15), (14, 19)), start=1):
        label[10:13, y : y + 3, x : x + 3] = value
    table = {name: (value,) for value, name in enumerate(CLASSES, start=1)}
    levels = np.arange(5, dtype=np.float32)
    for i in range(5):
        write_view(folder / "cubes", f"c{i}", seed=i, label=label, table=table, levels=levels)
    return whole(folder / "cubes")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Draft]:
    catalogue = read_catalogue([cubes(tmp_path_factory.mktemp("store"))])
    tasks = real.RealTasks(catalogue, training(task=TASK, geometry=still()), 16)
    drafts = [tasks.draw(np.random.default_rng(g)) for g in range(1500)]
    return [draft for draft in drafts if draft is not None]


def independent(rows: Counter[tuple[object, object]]) -> float:
    """p of a chi-square test of independence of what the keys count."""
    firsts = sorted({a for a, _ in rows}, key=str)
    seconds = sorted({b for _, b in rows}, key=str)
    table = np.array([[rows[a, b] for b in seconds] for a in firsts])
    assert table.min() > 5
    return float(stats.chi2_contingency(table).pvalue)


def uniform(counts: Counter[object]) -> float:
    return float(stats.chisquare(list(counts.values())).pvalue)


def singles(draft: Draft) -> list[str]:
    return [name for name in draft.names if "+" not in name]


def test_every_class_is_as_likely_in_every_place(drawn: list[Draft]) -> None:
    for k in (2, 3, 4):
        for place in range(k):
            counts = Counter(d.names[place] for d in drawn if len(singles(d)) == len(d.names) == k)
            assert set(counts) == set(CLASSES)
            assert uniform(counts) > P_MIN


def test_the_number_of_classes_tells_no_class(drawn: list[Draft]) -> None:
    # One class per episode, so that the counts are independent of each other.
    rows = Counter((singles(d)[0], len(d.names)) for d in drawn if singles(d))
    assert independent(rows) > P_MIN


def test_every_number_of_classes_is_asked_for_and_classes_are_dropped(drawn: list[Draft]) -> None:
    counts = Counter(len(d.names) for d in drawn)
    assert set(counts) == {1, 2, 3, 4}
    assert min(counts.values()) > 0.05 * len(drawn)


def test_the_place_of_a_union_tells_nothing(drawn: list[Draft]) -> None:
    for k in (2, 3):
        places = Counter(
            place
            for d in drawn
            for place, name in enumerate(d.names)
            if len(d.names) == k and "+" in name
        )
        assert set(places) == set(range(k))
        assert uniform(places) > P_MIN


def test_unions_are_of_any_classes(drawn: list[Draft]) -> None:
    pairs = Counter(n for d in drawn for n in d.names if n.count("+") == 1)
    assert len(pairs) == 6
    assert uniform(pairs) > P_MIN


def test_the_order_of_references_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Counter[tuple[object, object]] = Counter()
    look = real.RealTasks._look

    def spy(self, found, chosen, views, targets):
        names = [case.name for case in chosen.cases]
        if len(names) == 3:
            rows.update([(names[1], "first"), (names[2], "second")])
        return look(self, found, chosen, views, targets)

    monkeypatch.setattr(real.RealTasks, "_look", spy)
    tasks = real.RealTasks(
        read_catalogue([cubes(tmp_path)]), training(task=TASK, geometry=still()), 16
    )
    for g in range(400):
        tasks.draw(np.random.default_rng([1, g]))
    assert independent(rows) > P_MIN
