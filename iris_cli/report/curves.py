"""The picture of a training run: loss, Dice of episodes, in-context validation, learning rate."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from iris_cli.files.publish import publish

_SMOOTHING = 0.02  # weight of the newest point in the moving average

Curve = tuple[list[float], list[float]]


def draw_progress(metrics: Path, picture: Path) -> Path:
    """Draw `metrics.jsonl` of a run as a PNG.

    Every line of the file is a JSON object with `step`; `loss`, `lr` and keys that start with
    `dice` are drawn where present; `validation` holds the figures of one validation. A last
    line that is still being written is left out.
    """
    curves = _curves(_read_lines(metrics))
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    _draw(axes[0, 0], curves, ("loss",), "training loss")
    _draw(axes[0, 1], curves, ("dice",), "Dice of training episodes, on the query patch")
    _draw(axes[1, 0], curves, ("validation",), "in-context validation, Dice on native grids")
    _draw(axes[1, 1], curves, ("lr",), "learning rate")
    return publish(picture, lambda temporary: figure.savefig(temporary, dpi=90, format="png"))


def _read_lines(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _curves(lines: Iterable[dict[str, Any]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = defaultdict(lambda: ([], []))
    for line in lines:
        for key, value in _flat(line):
            steps, values = curves[key]
            steps.append(float(line["step"]))
            values.append(value)
    return curves


def _flat(line: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for key, value in line.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key, float(value)


def _draw(axes: Any, curves: dict[str, Curve], prefixes: tuple[str, ...], title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    names = [n for n in curves if n.startswith(prefixes) and not n.endswith("/seconds")]
    for name in names:
        steps, values = curves[name]
        many = len(values) > 200
        axes.plot(steps, _smooth(values) if many else values, label=name, linewidth=1.2,
                  marker="" if many else "o", markersize=2.5)  # fmt: skip
    if names:
        axes.legend(fontsize=7)


def _smooth(values: list[float]) -> list[float]:
    smoothed, mean = [], float(np.mean(values[:20]))
    for value in values:
        mean += _SMOOTHING * (value - mean)
        smoothed.append(mean)
    return smoothed
