"""Real episodes: annotated classes and their unions, query and references of different subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iris_cli.task.crops import choose_crops_of_points
from iris_cli.training.catalogue import Case, Catalogue, TrainingSet
from iris_cli.training.drafts import Draft, draw_count, draw_scale, draw_set
from iris_cli.training.looks import Look, read_image, read_labels
from iris_cli.training.settings import TrainingSettings
from iris_cli.training.views import Float3, View, clamp_centre, draw_view

# The chooser looks at this many classes of a reference; more cost time and change little.
CLASSES_FOR_CROPS = 8
# A reference crop is moved by up to this part of the patch from where the chooser puts it.
REFERENCE_SHIFT = 0.1
# A query crop that shall hold a class has one of its voxels within this part of the patch's centre.
QUERY_SHIFT = 0.35
UNION_SIZES = (2, 4)


@dataclass(frozen=True)
class Target:
    """One class of an episode: a class of the set, or a union of several."""

    members: tuple[str, ...]

    @property
    def name(self) -> str:
        return "+".join(self.members)


@dataclass(frozen=True)
class _Chosen:
    """Cases of an episode, query first, and whether each is mirrored."""

    cases: tuple[Case, ...]
    mirrored: tuple[bool, ...]
    same_image: bool


class RealTasks:
    """Draws real episodes from every set with labels."""

    def __init__(self, catalogue: Catalogue, settings: TrainingSettings, patch: int) -> None:
        self.sets = tuple(s for s in catalogue.sets if s.class_names and s.settings.weight > 0)
        self.settings = settings
        self.patch = patch

    def draw(self, rng: np.random.Generator) -> Draft | None:
        """One draft, or None where the draw did not work out (the caller draws again)."""
        task, geometry = self.settings.task, self.settings.geometry
        found = draw_set(rng, self.sets, self.settings.size_temperature)
        anchor = found.class_names[int(rng.integers(len(found.class_names)))]
        count = draw_count(rng, task.references_max, task.one_reference_share)
        chosen = self._choose_cases(rng, found, anchor, count)
        scale = draw_scale(rng, geometry.scale_min, geometry.scale_max)
        extent = self.patch * scale
        centres = [np.zeros(3)]
        targets: tuple[Target, ...] = ()
        for i in range(1, len(chosen.cases)):
            case, swap = chosen.cases[i], _swap(found, chosen.mirrored[i])
            centre, seen = self._reference_crop(rng, case, swap.get(anchor, anchor), extent)
            centres.append(centre)
            if i == 1:
                names = [swap.get(name, name) for name in seen]
                targets = self._choose_targets(rng, chosen, found, anchor, names)
        centres[0] = self._query_centre(rng, chosen, found, targets, extent)
        views = [
            draw_view(
                rng, centre, scale, self.patch, geometry, strong=chosen.same_image, mirror=mirror
            )
            for centre, mirror in zip(centres, chosen.mirrored, strict=True)
        ]
        return self._look(found, chosen, views, targets)

    def _choose_cases(
        self, rng: np.random.Generator, found: TrainingSet, anchor: str, count: int
    ) -> _Chosen:
        task = self.settings.task
        holders = [found.cases[i] for i in found.holders[anchor]]
        same = found.settings.pairing == "image" or rng.random() < task.same_image_share
        holds = rng.random() < task.query_holds_class
        queries = holders
        if not same and not holds:
            queries = [case for case in found.cases if case.annotated([anchor])]
        query = queries[int(rng.integers(len(queries)))]
        others = [
            case
            for case in holders
            if case.subject != query.subject and case.channel == query.channel
        ]
        if same or not others:
            # A set with a single subject supplies it twice.
            query = query if query.holds(anchor) else holders[int(rng.integers(len(holders)))]
            cases = (query,) * (count + 1)
            same = True
        else:
            picks = rng.permutation(len(others))[:count]
            cases = (query, *(others[int(i)] for i in picks))
        mirrored = tuple(
            bool(found.may_mirror and rng.random() < 0.5)
            and _may_mirror(found, case, anchor, i > 0)
            for i, case in enumerate(cases)
        )
        return _Chosen(cases, mirrored, same)

    def _reference_crop(
        self, rng: np.random.Generator, case: Case, anchor: str, extent: float
    ) -> tuple[Float3, list[str]]:
        """Centre of a crop that shows the anchor, and the classes seen in it, as stored."""
        held = [name for name in case.classes if name != anchor and case.holds(name)]
        order = [held[int(i)] for i in rng.permutation(len(held))]
        names = [anchor, *order[: CLASSES_FOR_CROPS - 1]]
        edge = max(1, round(extent))
        plan = choose_crops_of_points(
            {name: case.classes[name].points for name in names},
            case.shape,
            (edge, edge, edge),
            voxels={name: case.classes[name].voxels for name in names},
            wanted=[anchor],
        )
        crops = plan.of(anchor)
        start = np.array(crops[int(rng.integers(len(crops)))].start_zyx, np.float64)
        centre = start + (edge - 1) / 2 + REFERENCE_SHIFT * extent * rng.uniform(-1, 1, 3)
        centre = clamp_centre(centre, case.shape, np.full(3, extent))
        seen = [
            name
            for name in (anchor, *order)
            if np.any(np.all(np.abs(case.classes[name].points - centre) < extent / 2, axis=1))
        ]
        return centre, seen

    def _choose_targets(
        self,
        rng: np.random.Generator,
        chosen: _Chosen,
        found: TrainingSet,
        anchor: str,
        seen: Sequence[str],
    ) -> tuple[Target, ...]:
        """The classes of an episode in random order: the anchor, some others seen, a union."""
        task = self.settings.task
        query, swap = chosen.cases[0], _swap(found, chosen.mirrored[0])
        others = [
            name for name in seen if name != anchor and query.annotated([swap.get(name, name)])
        ]
        kept = [name for name in others if rng.random() >= task.class_drop]
        most = int(rng.integers(1, task.classes_max + 1))
        targets = [Target((anchor,)), *(Target((name,)) for name in kept[: most - 1])]
        if others and rng.random() < task.union_probability:
            size = min(int(rng.integers(UNION_SIZES[0], UNION_SIZES[1] + 1)), len(others) + 1)
            pool = [anchor, *others]
            members = tuple(sorted(pool[int(i)] for i in rng.permutation(len(pool))[:size]))
            # With one class only, the union takes its place: else it could be told by its order.
            targets = [*targets, Target(members)] if most > 1 else [Target(members)]
        targets = targets[-task.classes_max :]
        return tuple(targets[int(i)] for i in rng.permutation(len(targets)))

    def _query_centre(
        self,
        rng: np.random.Generator,
        chosen: _Chosen,
        found: TrainingSet,
        targets: Sequence[Target],
        extent: float,
    ) -> Float3:
        case, swap = chosen.cases[0], _swap(found, chosen.mirrored[0])
        names = {swap.get(member, member) for target in targets for member in target.members}
        held = [name for name in sorted(names) if case.holds(name)]
        if held and rng.random() < self.settings.task.query_holds_class:
            points = case.classes[held[int(rng.integers(len(held)))]].points
            centre = points[int(rng.integers(len(points)))] + QUERY_SHIFT * extent * rng.uniform(
                -1, 1, 3
            )
        else:
            centre = rng.uniform(0, case.shape)
        return clamp_centre(centre, case.shape, np.full(3, extent))

    def _look(
        self,
        found: TrainingSet,
        chosen: _Chosen,
        views: Sequence[View],
        targets: Sequence[Target],
    ) -> Draft:
        looks, annotated = [], []
        for case, view in zip(chosen.cases, views, strict=True):
            swap = _swap(found, view.mirrored)
            members = [[swap.get(name, name) for name in t.members] for t in targets]
            known = [case.annotated(names) for names in members]
            values = [
                case.values(names) if ok else () for names, ok in zip(members, known, strict=True)
            ]
            image, image_frame = read_image(case, view, self.patch)
            labels, label_frame, table = read_labels(case, view, self.patch, values)
            looks.append(Look(view, image, image_frame, case.fill, labels, label_frame, table))
            annotated.append(known)
        return Draft(
            kind="real",
            source=found.name,
            names=tuple(target.name for target in targets),
            keys=tuple(_bank_key(found, target) for target in targets),
            looks=tuple(looks),
            annotated=np.array(annotated, bool),
            strong=chosen.same_image,
        )


def _swap(found: TrainingSet, mirrored: bool) -> dict[str, str]:
    """Name in a mirrored view -> name in the store (its own inverse)."""
    return dict(found.partners) if mirrored else {}


def _bank_key(found: TrainingSet, target: Target) -> str | None:
    """None for a union, and for instance labels, which mean nothing beyond one image."""
    if len(target.members) > 1 or found.settings.pairing == "image":
        return None
    return f"{found.name}/{target.name}"


def _may_mirror(found: TrainingSet, case: Case, anchor: str, is_reference: bool) -> bool:
    """A mirrored image must still offer the anchor, as a reference even hold it."""
    partner = found.partners.get(anchor, anchor)
    return case.holds(partner) if is_reference else case.annotated([partner])
