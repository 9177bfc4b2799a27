"""What label values mean, beside the label maps: labels.json and colour tables.

`labels.ctbl` opens in 3D Slicer, `labels.txt` in ITK-SNAP. A colour depends on the label value
only, so that one value looks the same in every output folder.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path

from iris_cli.files.publish import publish_json, publish_text, remove_leftovers

# Hues a golden ratio apart: neighbours in value are far apart on the circle, for any number.
_GOLDEN = 0.6180339887498949


def write_legend(folder: Path, names: Mapping[int, str]) -> tuple[Path, ...]:
    """Publish labels.json ({name: value}), labels.ctbl and labels.txt into `folder`."""
    table = {names[value]: value for value in sorted(names)}
    paths = tuple(folder / f"labels.{ending}" for ending in ("json", "ctbl", "txt"))
    for path in paths:
        remove_leftovers(folder, path.name)
    publish_json(paths[0], {"background": 0, **table})
    publish_text(paths[1], slicer_table(names))
    publish_text(paths[2], itk_snap_table(names))
    return paths


def colour(value: int) -> tuple[int, int, int]:
    """Red, green, blue (0-255) of a label value."""
    hue = (value * _GOLDEN) % 1.0
    saturation, brightness = (0.65, 0.95) if value % 2 else (0.85, 0.8)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def slicer_table(names: Mapping[int, str]) -> str:
    """A colour table of 3D Slicer: `value name red green blue alpha`; names without blanks."""
    lines = ["# Color table file", "0 background 0 0 0 0"]
    for value in sorted(names):
        red, green, blue = colour(value)
        lines.append(f"{value} {'_'.join(names[value].split())} {red} {green} {blue} 255")
    return "\n".join(lines) + "\n"


def itk_snap_table(names: Mapping[int, str]) -> str:
    """A label description file of ITK-SNAP: `value red green blue alpha shown mesh "name"`."""
    lines = [
        "# ITK-SnAP Label Description File",
        '    0     0    0    0        0  0  0    "Clear Label"',
    ]
    for value in sorted(names):
        red, green, blue = colour(value)
        name = names[value].replace('"', "'")
        lines.append(f'{value:5d} {red:5d}{green:5d}{blue:5d}        1  1  1    "{name}"')
    return "\n".join(lines) + "\n"
