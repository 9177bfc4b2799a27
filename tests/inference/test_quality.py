"""When a class is flagged, and when it is not."""

from __future__ import annotations

from iris_cli.inference.quality import (
    CONFIDENCE,
    CUT,
    UNLIKE,
    VOLUME,
    Likeness,
    quality_flags,
)
from iris_cli.inference.statistics import ClassStatistics
from iris_cli.task.task_file import ReferenceVolumes


def found(volume_ml: float, *, touches_border: bool = False) -> ClassStatistics:
    return ClassStatistics(round(volume_ml * 100), volume_ml, 40.0, 1, touches_border)


WHOLE = ReferenceVolumes(volumes_ml=(20.0, 30.0))


def test_what_is_as_in_the_references_has_no_flag() -> None:
    assert quality_flags(found(25), 0.95, WHOLE) == {}
    assert quality_flags(found(7), None, WHOLE) == {}
    assert quality_flags(found(89), 0.9, WHOLE) == {}
    assert quality_flags(found(1000), 0.95, None) == {}


def test_low_confidence_and_its_number() -> None:
    assert quality_flags(found(25), 0.61, WHOLE) == {CONFIDENCE: "0.61, below 0.9"}


def test_volumes_beyond_a_factor_of_three_are_unlikely() -> None:
    for volume in (0.0, 6.6, 91):
        flags = quality_flags(found(volume), 0.95, WHOLE)
        assert list(flags) == [VOLUME]
        assert flags[VOLUME].endswith("references 20 to 30 ml")


def test_what_reaches_the_edge_is_cut_and_not_too_small() -> None:
    assert list(quality_flags(found(1, touches_border=True), 0.95, WHOLE)) == [CUT]
    assert list(quality_flags(found(100, touches_border=True), 0.95, WHOLE)) == [CUT, VOLUME]


def test_what_is_cut_in_most_references_is_no_news_and_their_volumes_are_no_bound() -> None:
    cut = ReferenceVolumes(volumes_ml=(20.0, 30.0, 25.0), cut=2)
    assert quality_flags(found(100, touches_border=True), 0.95, cut) == {}
    once = ReferenceVolumes(volumes_ml=(20.0, 30.0), cut=1)
    assert list(quality_flags(found(100, touches_border=True), 0.95, once)) == [CUT]


def test_tokens_far_from_those_of_the_references_are_flagged_with_both_numbers() -> None:
    near, far = Likeness.of(0.1, ()), Likeness.of(0.26, ())
    assert quality_flags(found(25), 0.95, WHOLE, near) == {}
    assert quality_flags(found(25), 0.95, WHOLE, far) == {UNLIKE: "token distance 0.26, above 0.1"}


def test_references_that_differ_more_allow_more_and_alike_ones_not_less() -> None:
    assert Likeness.of(0.26, (0.05, 0.09)) == Likeness(0.26, 0.27)
    assert Likeness.of(0.26, (0.001, 0.002)) == Likeness(0.26, 0.1)
