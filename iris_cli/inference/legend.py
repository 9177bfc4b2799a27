"""What label values mean, beside the label maps: labels.json and colour tables.

`labels.ctbl` opens in 3D Slicer, `labels.txt` in ITK-SNAP. A colour depends on the label value
only, so that one value looks the same in every output folder.

Several lines may work in one folder, each with its classes. Whoever changes labels.json holds a
claim on it meanwhile, and reads it before, so that no name of another line is lost; names that no
label map needs go only when no other line is at work.
"""

from __future__ import annotations

import colorsys
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from iris_cli.dataset.label_files import LABELS_FILE, read_labels_file
from iris_cli.errors import DataRefused
from iris_cli.execution.claims import Claims, living
from iris_cli.files.publish import publish_json, publish_text, remove_leftovers

# Hues a golden ratio apart: neighbours in value are far apart on the circle, for any number.
_GOLDEN = 0.6180339887498949
# The files are written in a moment; nobody waits long for them.
_LOOK_S = 0.05
_LINE = "line-"


class SharedLegend:
    """The legend of an output folder for as long as a line works there; a context manager.

    Its names stand there from the beginning on, before any label map has their values.
    """

    def __init__(self, folder: Path, names: Mapping[int, str], claims: Path) -> None:
        """names: of this line, by value. claims: a folder for claims on the legend alone."""
        self._folder, self._names = folder, dict(names)
        self._claims = Claims(claims)
        self._line = _LINE + secrets.token_hex(8)

    def __enter__(self) -> SharedLegend:
        """raises DataRefused where the folder has other names for these values."""
        self._claims.__enter__()
        try:
            # Others see a claim once it is written: one that is being written is taken for dead.
            with self._held():
                self._take(self._line)
                self._write(read_legend(self._folder, self._names))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._claims.__exit__(None, None, None)

    def finish(self, needs_others: Callable[[], bool]) -> None:
        """The label maps are there; needs_others: whether the folder has some of other lines.

        raises DataRefused where somebody has written other names for these values meanwhile.
        """
        with self._held():
            others = read_legend(self._folder, self._names)
            self._write(others if self._others_at_work() or needs_others() else {})

    def _write(self, others: Mapping[int, str]) -> None:
        write_legend(self._folder, {**others, **self._names})

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        self._take(LABELS_FILE)
        try:
            yield
        finally:
            self._claims.release(LABELS_FILE)

    def _take(self, name: str) -> None:
        while not self._claims.take(name):
            time.sleep(_LOOK_S)

    def _others_at_work(self) -> bool:
        """Whether another line lives; what killed ones left is removed."""
        own = self._claims.path(self._line)
        others = [path for path in self._claims.folder.glob(f"{_LINE}*") if path != own]
        at_work = living(others)
        for path in others:
            if path not in at_work:
                path.unlink(missing_ok=True)
        return bool(at_work)


def read_legend(folder: Path, names: Mapping[int, str]) -> dict[int, str]:
    """Value -> name in the labels.json of a folder; refused where it contradicts `names`."""
    path = folder / LABELS_FILE
    if not path.is_file():
        return {}
    legend = {value: c.name for c in read_labels_file(path).classes for value in c.values}
    for own_value, own_name in names.items():
        others = [
            f"{name} = {value}"
            for value, name in legend.items()
            if (value == own_value) != (name == own_name)
        ]
        if others:
            raise DataRefused(
                "the output folder holds label maps of another task",
                file=path,
                found=", ".join(others),
                expected=f"{own_name} = {own_value}, as in this task",
                fix=f"choose another output folder, or remove {folder}",
            )
    return legend


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
        name = " ".join(names[value].replace('"', "'").splitlines())
        lines.append(f'{value:5d} {red:5d}{green:5d}{blue:5d}        1  1  1    "{name}"')
    return "\n".join(lines) + "\n"
