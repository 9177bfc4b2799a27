"""What the growth benchmark calls a straight line."""

from __future__ import annotations

import pytest

from benchmarks.growth import Curve, Reading, Term, slope

COUNTS = (1, 2, 4, 8)


def curve(seconds: list[float], memory: list[float]) -> Curve:
    readings = tuple(Reading(s, mb) for s, mb in zip(seconds, memory, strict=True))
    return Curve(Term("n", COUNTS, lambda _: [], "n.png"), readings, Reading(2.0, 300.0))


def test_slopes_are_those_on_logarithmic_axes() -> None:
    assert slope(COUNTS, [3, 6, 12, 24], flat=0.5) == pytest.approx(1)
    assert slope(COUNTS, [3, 12, 48, 192], flat=0.5) == pytest.approx(2)
    assert slope(COUNTS, [3, 3.1, 3, 3.2], flat=0.5) == 0
    # What is lost in the noise of the start says nothing of the rest.
    assert slope(COUNTS, [0.4, -0.1, 4, 8], flat=0.5) == pytest.approx(1)


def test_a_term_that_grows_faster_than_in_a_straight_line_is_steep() -> None:
    flat = [310.0] * 4
    assert not curve([3, 4, 6, 10], flat).is_steep
    assert curve([3, 6, 18, 66], flat).is_steep
    assert curve([3, 4, 6, 10], [350, 500, 1100, 3500]).is_steep
