"""The picture of a training run: loss, episodes, learning rate, waiting, and every validation."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from iris_cli.files.jsonl import read_json_lines
from iris_cli.files.publish import publish

COLUMNS = 4
_KINDS = {"real": "tab:blue", "pseudo": "tab:orange", "synthetic": "tab:green"}
# Solid: what the network was trained on. Dashed or dotted: what is new to it.
_GROUPS = {
    "seen": ("-", "classes seen in training"),
    "held_out": ("--", "held-out classes"),
    "unseen": ("--", "unseen set"),
}
# A moving average over this part of the points drawn.
_SMOOTHED_PART = 1 / 40


@dataclass
class Curve:
    """Values by step; low and high where they have intervals, nan where not."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, step: float, value: float, low: float = math.nan, high: float = math.nan) -> None:
        for numbers, number in zip(
            (self.steps, self.values, self.low, self.high), (step, value, low, high), strict=True
        ):
            numbers.append(number)


# Set -> (group of classes, number of references) -> mean Dice over the classes.
Validation = dict[str, dict[tuple[str, str], Curve]]


def draw_progress(metrics: Path, picture: Path) -> Path:
    """Draw `metrics.jsonl` of a run as a PNG.

    Every line of the file is a JSON object with `step`; the fields of a step and the figures under
    `validation` are drawn where they are present. A half-written line is left out. Each set that
    is validated on has a panel of its own.
    """
    lines = read_json_lines(metrics)
    figures = [(line["step"], line["validation"]) for line in lines if "validation" in line]
    sets = _validation_curves(figures)
    rows = math.ceil((len(sets) + bool(sets)) / COLUMNS)
    figure = Figure(figsize=(16, 3.3 + 2.5 * rows), layout="constrained")
    grid = figure.subplots(1 + rows, COLUMNS, squeeze=False, height_ratios=[1.3] + [1.0] * rows)
    _draw_steps(grid[0], lines)
    panels = list(grid[1:].ravel())
    if sets:
        _draw_score(panels[0], figures)
        counts = _counts(sets)
        for axes, name in zip(panels[1:], sorted(sets), strict=False):
            _draw_set(axes, name, sets[name], counts)
        _add_legend(figure, sets, counts)
    for axes in panels[len(sets) + 1 :]:
        axes.set_axis_off()
    return publish(picture, lambda temporary: figure.savefig(temporary, dpi=90, format="png"))


def _validation_curves(figures: Iterable[tuple[int, Mapping[str, Any]]]) -> Validation:
    """Curves by set; a set has those of its seen and of its held-out classes, or of an unseen."""
    sets: Validation = defaultdict(lambda: defaultdict(Curve))
    for step, content in figures:
        for group in _GROUPS:
            for name, by_count in content.get(group, {}).items():
                for count, found in by_count.items():
                    bounds = [math.nan if found[k] is None else found[k] for k in ("low", "high")]
                    sets[name][group, count].add(step, found["mean"], *bounds)
    return sets


def _draw_steps(panels: Sequence[Any], lines: Sequence[Mapping[str, Any]]) -> None:
    loss, dice, lr, wait = panels
    steps = [line for line in lines if "loss" in line]
    _decorate(loss, "loss of training episodes")
    _draw_smoothed(loss, _curve(steps, "loss"), "tab:blue")
    _decorate(dice, "Dice of training episodes, on the query patch")
    for kind, colour in _KINDS.items():
        lines_of = [{"step": s["step"], "dice": s.get("dice_of", {}).get(kind)} for s in steps]
        _draw_smoothed(dice, _curve(lines_of, "dice"), colour, label=kind)
    dice.set_ylim(0, 1)
    if dice.get_legend_handles_labels()[0]:
        dice.legend(fontsize=8)
    _decorate(lr, "learning rate")
    rates = _curve(steps, "lr")
    lr.plot(rates.steps, rates.values, color="tab:purple", linewidth=1.2)
    lr.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _decorate(wait, "share of a step spent waiting for episodes")
    _draw_smoothed(wait, _curve(steps, "wait_share"), "tab:red")
    wait.set_ylim(0, 1)


def _curve(lines: Iterable[Mapping[str, Any]], key: str) -> Curve:
    curve = Curve()
    for line in lines:
        if line.get(key) is not None:
            curve.add(line["step"], line[key])
    return curve


def _draw_smoothed(axes: Any, curve: Curve, colour: str, *, label: str | None = None) -> None:
    """Every value faintly, and what becomes of them in the mean."""
    if curve.values:
        axes.plot(curve.steps, curve.values, color=colour, linewidth=0.6, alpha=0.3)
        axes.plot(curve.steps, _smooth(curve.values), color=colour, linewidth=1.4, label=label)


def _smooth(values: Sequence[float]) -> list[float]:
    weight = 2 / (len(values) * _SMOOTHED_PART + 2)
    smoothed, mean = [], values[0]
    for value in values:
        mean += weight * (value - mean)
        smoothed.append(mean)
    return smoothed


def _draw_score(axes: Any, figures: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    """The number that chooses the best checkpoint, and where it was highest."""
    curve = _curve(({"step": step, **content} for step, content in figures), "score")
    _decorate(axes, "score: chooses the best checkpoint")
    axes.plot(curve.steps, curve.values, color="black", marker="o", markersize=2.5, linewidth=1.4)
    if curve.values:
        best = max(range(len(curve.values)), key=curve.values.__getitem__)
        text = f"best {curve.values[best]:.3f} at step {curve.steps[best]:.0f}"
        axes.plot(curve.steps[best], curve.values[best], "*", color="tab:red", label=text)
        axes.legend(fontsize=7)


def _draw_set(
    axes: Any, name: str, curves: Mapping[tuple[str, str], Curve], counts: Mapping[str, Any]
) -> None:
    unseen = any(group == "unseen" for group, _ in curves)
    _decorate(axes, f"{name} (unseen)" if unseen else name)
    axes.set_ylim(0, 1)
    for (group, count), curve in sorted(curves.items()):
        style, colour = _GROUPS[group][0], counts[count]
        axes.plot(curve.steps, curve.values, style, color=colour, linewidth=1.4,
                  marker="o", markersize=2.5)  # fmt: skip
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)


def _counts(sets: Validation) -> dict[str, Any]:
    """Numbers of references (`k1`, `k3`) and their colours."""
    counts = sorted({k for curves in sets.values() for _, k in curves}, key=lambda k: int(k[1:]))
    return {count: mpl.colormaps["Dark2"](index % 8) for index, count in enumerate(counts)}


def _add_legend(figure: Figure, sets: Validation, counts: Mapping[str, Any]) -> None:
    groups = {group for curves in sets.values() for group, _ in curves}
    styles: dict[str, list[str]] = defaultdict(list)
    for group, (style, text) in _GROUPS.items():
        if group in groups:
            styles[style].append(text)
    handles = [
        *(
            Line2D([], [], color="black", linestyle=s, label=", ".join(t))
            for s, t in styles.items()
        ),
        *(
            Line2D([], [], color=colour, label=f"{count[1:]} reference{'s' * (count != 'k1')}")
            for count, colour in counts.items()
        ),
    ]
    title = (
        "in-context validation: Dice on native grids, mean over classes, with its 95 % bootstrap "
        "interval over subjects"
    )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=6, fontsize=8, title=title,
        title_fontsize=8, frameon=False,
    )  # fmt: skip


def _decorate(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.set_xlabel("step", fontsize=7)
