"""The preprocessed store: what is written reads back by crops, and nothing torn is believed."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.errors import DataRefused
from iris_cli.preparation import store
from iris_cli.preparation.store import (
    StoredCase,
    describe_classes,
    list_cases,
    open_case,
    remove_view,
    store_key,
    view_name,
    write_case,
)

SHAPE = (70, 33, 5)


def stored_case(case: str = "case_1", channel: int = 0, **changes: Any) -> StoredCase:
    fields: dict[str, Any] = {
        "case": case,
        "set": "set",
        "subject": "subject",
        "role": "train",
        "channel": channel,
        "modality": "other",
        "spacing_mm": 1.5,
        "grid": {"shape_zyx": list(SHAPE), "affine": np.eye(4).tolist()},
        "shape": SHAPE,
        "fill": -1.25,
        "nonfinite": 0,
        "statistics": {"mean": 3.5},
        "classes": {},
        "not_annotated": (),
        "ignore_value": None,
        "labelled": True,
    }
    return StoredCase(**(fields | changes))


def arrays(dtype: str = "uint8", high: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=SHAPE).astype(np.float32)
    return image, rng.integers(0, high, SHAPE).astype(dtype)


def write(folder: Path, stored: StoredCase, image: np.ndarray, label: np.ndarray | None) -> None:
    write_case(folder, stored, image, label, inputs={"image": "a"}, run={"seconds": 1})


def test_crops_read_back_as_written(tmp_path: Path) -> None:
    image, label = arrays()
    write(tmp_path, stored_case(), image, label)
    volume = open_case(tmp_path, "case_1")
    region = (slice(60, 70), slice(0, 33), slice(1, 4))
    np.testing.assert_array_equal(volume.image(region), image.astype(np.float16)[region])
    np.testing.assert_array_equal(volume.label(region), label[region])
    np.testing.assert_array_equal(volume.image(), image.astype(np.float16))
    assert volume.image().dtype == np.float16
    assert volume.stored == stored_case()


@pytest.mark.parametrize(
    ("high", "expected"),
    [(255, "uint8"), (256, "uint16"), (65536, "uint32"), (2**31 - 1, "uint32")],
)
def test_labels_take_the_smallest_type_that_holds_them(
    tmp_path: Path, high: int, expected: str
) -> None:
    image, label = arrays("int64")
    label[0, 0, 0] = high
    write(tmp_path, stored_case(), image, label)
    read = open_case(tmp_path, "case_1").label()
    assert read.dtype == expected
    np.testing.assert_array_equal(read, label)


def test_unlabelled_case_has_no_label_file(tmp_path: Path) -> None:
    image, _ = arrays()
    write(tmp_path, stored_case(labelled=False), image, None)
    assert not (tmp_path / "case_1.label.b2nd").exists()
    with pytest.raises(DataRefused, match="unlabelled"):
        open_case(tmp_path, "case_1").label()


def test_channels_are_views_with_their_own_names(tmp_path: Path) -> None:
    image, label = arrays()
    write(tmp_path, stored_case(), image, label)
    write(tmp_path, stored_case(channel=2), image + 1, label)
    assert list_cases(tmp_path) == ("case_1", "case_1@2") == ("case_1", view_name("case_1", 2))
    np.testing.assert_array_equal(
        open_case(tmp_path, "case_1@2").image(), (image + 1).astype(np.float16)
    )


def test_a_view_without_receipt_does_not_exist(tmp_path: Path) -> None:
    write(tmp_path, stored_case(), *arrays())
    (tmp_path / "case_1.json").unlink()
    assert list_cases(tmp_path) == ()
    with pytest.raises(DataRefused, match="not in the preprocessed store"):
        open_case(tmp_path, "case_1")


@pytest.mark.parametrize("ending", [".image.b2nd", ".label.b2nd"])
def test_a_receipt_does_not_vouch_for_files_that_are_gone_or_cut(
    tmp_path: Path, ending: str
) -> None:
    write(tmp_path, stored_case(), *arrays())
    file = tmp_path / f"case_1{ending}"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataRefused):
        open_case(tmp_path, "case_1")
    file.unlink()
    with pytest.raises(DataRefused):
        open_case(tmp_path, "case_1")


def test_rewriting_removes_the_old_receipt_before_the_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, label = arrays()
    write(tmp_path, stored_case(), image, label)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed while writing the second array")

    original = store._publish_array
    monkeypatch.setattr(
        store, "_publish_array", lambda p, *a: fail() if "label" in p.name else original(p, *a)
    )
    with pytest.raises(RuntimeError):
        write(tmp_path, stored_case(), image + 1, label)
    assert list_cases(tmp_path) == ()
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_files_that_read_back_different_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, label = arrays()
    monkeypatch.setattr(store, "_open_array", lambda path: np.zeros(SHAPE, np.float16))
    with pytest.raises(OSError, match="reads back different"):
        write(tmp_path, stored_case(), image, label)
    assert list(tmp_path.iterdir()) == []


def test_receipt_holds_hashes_of_the_stored_arrays(tmp_path: Path) -> None:
    image, label = arrays()
    write(tmp_path, stored_case(), image, label)
    write(tmp_path / "again", stored_case(), image.astype(np.float64), label.astype(np.int64))
    first = json.loads((tmp_path / "case_1.json").read_text())["content"]
    second = json.loads((tmp_path / "again" / "case_1.json").read_text())["content"]
    assert first == second
    assert set(first["outputs"]) == {"image", "label"}


def test_an_opened_view_can_be_sent_to_another_process(tmp_path: Path) -> None:
    image, label = arrays()
    write(tmp_path, stored_case(), image, label)
    volume = open_case(tmp_path, "case_1")
    volume.image()
    copy = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(copy.label(), label)


def test_removed_views_are_gone(tmp_path: Path) -> None:
    write(tmp_path, stored_case(), *arrays())
    remove_view(tmp_path, "case_1")
    assert list(tmp_path.iterdir()) == []


def test_key_depends_on_spacing_profile_and_version() -> None:
    keys = {store_key(1.5, "iris-1"), store_key(1.6, "iris-1"), store_key(1.5, "mass-1")}
    keys.add(store_key(1.5, "iris-1", 99))
    assert len(keys) == 4
    assert store_key(1.5, "iris-1") == store_key(1.5000000001, "iris-1")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_coordinates_lie_in_their_class_and_counts_are_right(seed: int, values: int) -> None:
    label = np.random.default_rng(seed).integers(0, values, (9, 10, 11))
    classes = {"one": (1,), "region": (1, 3, 4), "absent": (77,)}
    described = describe_classes(label, classes, seed="set/case")
    for name, wanted in classes.items():
        found = described[name]
        assert found.voxels == np.isin(label, wanted).sum()
        assert len(found.coordinates) == min(found.voxels, 256)
        assert len(set(found.coordinates)) == len(found.coordinates)
        assert all(label[place] in wanted for place in found.coordinates)


def test_coordinates_are_the_same_every_time_and_spread_over_the_class() -> None:
    label = np.zeros((40, 30, 20), np.uint8)
    label[5:35, 3:28, 2:18] = 4
    first = describe_classes(label, {"organ": (4,)}, seed="a")["organ"].coordinates
    assert first == describe_classes(label, {"organ": (4,)}, seed="a")["organ"].coordinates
    assert first != describe_classes(label, {"organ": (4,)}, seed="b")["organ"].coordinates
    mean = np.array(first).mean(axis=0)
    np.testing.assert_allclose(mean, [19.5, 15, 9.5], atol=1.5)
    # One of 256 equal runs in scan order: every slice of the class is met.
    assert set(np.array(first)[:, 0]) == set(range(5, 35))
