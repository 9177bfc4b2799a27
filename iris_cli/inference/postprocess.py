"""Parts of classes that are taken away after the decision, where the user asks for it.

Never on by default: a second part may be a real one. What was taken stands in the receipt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iris_cli.errors import UsageError
from iris_cli.files.schema import nearest
from iris_cli.inference.statistics import Component, Components, Labels


@dataclass(frozen=True)
class Cleaning:
    """Which parts (voxels that share a face, an edge or a corner) of which classes stay.

    keep_largest: classes of which the largest part stays, the first one of equals. min_volume_ml:
    class and the smallest volume of a part that stays; None stands for every class not named.
    """

    keep_largest: tuple[str, ...] = ()
    min_volume_ml: tuple[tuple[str | None, float], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.keep_largest or self.min_volume_ml)

    def parameters(self) -> dict[str, Any]:
        """What a result depends on, for its receipt; empty where nothing is taken away."""
        found: dict[str, Any] = {}
        if self.keep_largest:
            found["keep_largest"] = sorted(set(self.keep_largest))
        if self.min_volume_ml:
            found["min_volume_ml"] = {name or "": ml for name, ml in self.min_volume_ml}
        return found

    def check(self, names: Sequence[str]) -> None:
        """raises UsageError for a class that is not among `names`."""
        asked = [*self.keep_largest, *(name for name, _ in self.min_volume_ml if name)]
        for name in asked:
            if name not in names:
                guess = nearest(name, list(names))
                raise UsageError(
                    f"no class {name!r} is predicted, so no part of it can be taken away",
                    expected="some of " + ", ".join(names),
                    fix=f"did you mean {guess!r}?" if guess else "name one of the classes above",
                )

    def gone(self, name: str, parts: Sequence[Component], voxel_ml: float) -> list[Component]:
        """Those parts of a class that are taken away."""
        smallest = dict(self.min_volume_ml)
        least = smallest.get(name, smallest.get(None, 0.0))
        stays = [part for part in parts if part.voxels * voxel_ml >= least]
        if name in self.keep_largest and stays:
            stays = [max(stays, key=lambda part: part.voxels)]
        return [part for part in parts if part not in stays]


AS_DECIDED = Cleaning()


def clean(
    labels: Labels, spacing_zyx: Sequence[float], names: Mapping[int, str], cleaning: Cleaning
) -> dict[str, dict[str, int]]:
    """Make what `cleaning` takes away background, in `labels` (Z, Y, X) themselves.

    returns: class -> how many components and voxels were taken, of classes that lost some.
    """
    components = Components(labels, list(names))
    voxel_ml = math.prod(spacing_zyx) / 1000
    gone = {
        name: cleaning.gone(name, components.of(value), voxel_ml) for value, name in names.items()
    }
    components.remove([part.number for parts in gone.values() for part in parts])
    return {
        name: {"components": len(parts), "voxels": sum(part.voxels for part in parts)}
        for name, parts in gone.items()
        if parts
    }
