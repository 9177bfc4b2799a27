"""Pseudo episodes: regions of a real scan chosen without its labels, seen through two views.

The regions are found on a small axis-aligned copy of the surroundings (the *base*), as groups of
supervoxels, as connected parts of a band of intensities, or as bodies placed anywhere; every view
then looks at the same regions through its own turn, stretch, bend and shift, and at the scan itself
for its image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from iris_cli.training.catalogue import Case, Catalogue, TrainingSet
from iris_cli.training.drafts import Draft, draw_count, draw_scale, draw_set
from iris_cli.training.looks import Look, read_image
from iris_cli.training.settings import TrainingSettings
from iris_cli.training.views import (
    Float3,
    Frame,
    Shape3,
    View,
    clamp_centre,
    draw_view,
    frame_of,
    positions,
    region_of,
    sample_image,
    sample_nearest,
)

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

# The base reaches this much further than a patch, so that turned and shifted views stay within it;
# what a query sees beyond it carries no loss.
BASE_REACH = 1.6
BASE_FINER = 9 / 8
BASE_EDGE_MAX = 96
VIEW_SHIFT = 0.15
# All views of an episode move this part of the way to one of the regions.
VIEW_TOWARDS = 0.5
REGIONS_MAX = 5
# A region is between these parts of the base.
REGION_VOLUME = (0.0006, 0.15)
SUPERVOXEL_EDGES = (6, 8, 11, 15, 20)
SUPERVOXEL_SHARE = 0.6
# Semi-axes of a body, as parts of the base's edge, and how far each may differ from their mean.
BODY_RADII = (0.06, 0.22)
BODY_STRETCH = 1.4
# The levels of a group differ by at most this many standard deviations of the image from the seed.
GROUP_LEVELS = 0.5
# A region that overlaps a held-out class by more than this part of either is rejected.
HELD_OUT_OVERLAP = 0.1
# Below this standard deviation of the base there is nothing to find (air, padding).
FLAT = 0.05
# At least this part of the base lies in the scan.
INSIDE_MIN = 0.02
# This part of the shell around a region must differ from the region's mean by more than this many
# of its standard deviations (at least a tenth of the base's): pieces of air, of a uniform organ, or
# of pure noise cannot be found again in another view.
SHELL = 3
# A region whose median is within this many standard deviations of the fill is empty space.
EMPTY = 0.03
SHELL_DIFFERENT = 0.65
SHELL_DEVIATIONS = 1.2
CANDIDATES = 6


@dataclass(frozen=True)
class _Site:
    """Where the regions of an episode are looked for: a part of a scan.

    scale: voxel edge of the episode in voxels of the scan. image: (B, B, B), the base; inside:
    which of its voxels lie in the scan.
    """

    case: Case
    scale: float
    base: View
    image: Image
    inside: Mask


class PseudoTasks:
    """Draws pseudo episodes from every scan of every set, labelled or not."""

    def __init__(self, catalogue: Catalogue, settings: TrainingSettings, patch: int) -> None:
        self.sets = tuple(s for s in catalogue.sets if s.settings.weight > 0)
        self.settings = settings
        self.patch = patch

    def draw(self, rng: np.random.Generator) -> Draft | None:
        """One draft, or None where nothing was found (the caller draws again)."""
        found = draw_set(rng, self.sets, self.settings.size_temperature)
        site = self._draw_site(found, rng)
        regions = [] if site is None else self._draw_regions(site, rng)
        if site is None or not regions:
            return None
        looks = self._draw_looks(site, regions, rng)
        return Draft(
            kind="pseudo",
            source=found.name,
            names=tuple(f"region_{i}" for i in range(len(regions))),
            keys=(None,) * len(regions),
            looks=looks,
            annotated=np.ones((len(looks), len(regions)), bool),
            strong=True,
        )

    def _draw_site(self, found: TrainingSet, rng: np.random.Generator) -> _Site | None:
        """Somewhere in a scan of the set; None where it is empty or flat."""
        geometry, edge = self.settings.geometry, base_edge(self.patch)
        case = found.cases[int(rng.integers(len(found.cases)))]
        scale = draw_scale(rng, geometry.scale_min, geometry.scale_max)
        extent = np.full(3, self.patch * scale)
        centre = clamp_centre(rng.uniform(0, case.shape), case.shape, extent)
        base = _base_view(centre, scale, self.patch)
        source, frame = read_image(case, base, edge)
        image = sample_image(source, frame, positions(base, edge), case.fill).numpy()
        inside = _inside(base, edge, case.shape)
        if np.count_nonzero(inside) < INSIDE_MIN * inside.size or image[inside].std() < FLAT:
            return None
        return _Site(case, scale, base, image, inside)

    def _draw_regions(self, site: _Site, rng: np.random.Generator) -> list[Mask]:
        """Regions of the base that keep away from held-out classes; possibly none."""
        task = self.settings.task
        most = min(task.classes_max, REGIONS_MAX)
        if rng.random() < task.body_share:
            regions = place_bodies(site.inside, rng, most)
        else:
            regions = find_regions(site.image, site.inside, site.case.fill, rng, most)
        return self._without_held_out(site.case, site.base, regions)

    def _draw_looks(
        self, site: _Site, regions: Sequence[Mask], rng: np.random.Generator
    ) -> tuple[Look, ...]:
        """Query and references: views of the scan near one of the regions."""
        task, geometry = self.settings.task, self.settings.geometry
        case, base, patch = site.case, site.base, self.patch
        towards = _centroid(regions[int(rng.integers(len(regions)))], base)
        centre = base.centre + VIEW_TOWARDS * (towards - base.centre)
        reach = VIEW_SHIFT * (patch * site.scale)
        views = []
        for _ in range(1 + draw_count(rng, task.references_max, task.one_reference_share)):
            shift = reach * rng.uniform(-1, 1, 3)
            views.append(draw_view(rng, centre + shift, site.scale, patch, geometry, strong=True))
        labels, table = number_regions(regions)
        frame = Frame(_origin(base, base_edge(patch)), base.ratio)
        return tuple(
            Look(view, *read_image(case, view, patch), case.fill, labels, frame, table)
            for view in views
        )

    def _without_held_out(self, case: Case, base: View, regions: list[Mask]) -> list[Mask]:
        if not case.held_out:
            return regions
        region = region_of(base, base_edge(self.patch), case.shape)
        if region is None:
            return regions
        label = torch.from_numpy(case.volume.label(region).astype(np.int64))
        where = positions(base, base_edge(self.patch))
        seen = sample_nearest(label, frame_of(region), where).numpy()
        hidden = [np.isin(seen, values) for values in case.held_out]
        return [r for r in regions if not any(overlaps(r, h) for h in hidden)]


def overlaps(region: Mask, hidden: Mask) -> bool:
    """Whether a region shares more than a tenth of itself or of a held-out class."""
    both = int(np.count_nonzero(region & hidden))
    sizes = np.count_nonzero(region), np.count_nonzero(hidden)
    return any(both > HELD_OUT_OVERLAP * size for size in sizes)


def base_edge(patch: int) -> int:
    """Voxels per axis of the base."""
    return min(round(patch * BASE_FINER), BASE_EDGE_MAX)


def number_regions(regions: Sequence[Mask]) -> tuple[torch.Tensor, Mask]:
    """Regions (B, B, B) as one map and its table (rows, K + 1), as a look wants them.

    Row 0, what lies beyond the base, carries no loss: nobody knows what is there.
    """
    code = np.zeros(regions[0].shape, np.int64)
    for bit, region in enumerate(regions):
        code |= region.astype(np.int64) << bit
    codes, row = np.unique(code, return_inverse=True)
    inside = [[bool(c >> bit & 1) for bit in range(len(regions))] + [False] for c in codes.tolist()]
    beyond = [False] * len(regions) + [True]
    numbers = (row.reshape(code.shape) + 1).astype(np.uint8)
    return torch.from_numpy(numbers), np.array([beyond, *inside], bool)


def find_regions(
    image: Image, inside: Mask, fill: float, rng: np.random.Generator, most: int
) -> list[Mask]:
    """Up to `most` regions of an image (B, B, B) in random order, possibly none.

    inside: (B, B, B), where the scan is; the rest is padding. fill: lowest value of the scan.
    """
    wanted = int(rng.integers(1, most + 1))
    finder = _supervoxel_groups if rng.random() < SUPERVOXEL_SHARE else _thresholded
    regions: list[Mask] = []
    for region in finder(image, inside, rng, CANDIDATES * wanted):
        if stands_out(image, region, inside, fill) and not _found_before(region, regions):
            regions.append(region)
        if len(regions) == wanted:
            break
    return regions


def place_bodies(inside: Mask, rng: np.random.Generator, most: int) -> list[Mask]:
    """Up to `most` ellipsoids around random voxels of the scan, cut off where it ends.

    They ignore the image: a network that has learned which organ a kind of scan is usually asked
    for must still follow a mask that is not that organ.
    """
    wanted = int(rng.integers(1, most + 1))
    places = np.argwhere(inside)
    axes = np.ogrid[tuple(slice(0, n) for n in inside.shape)]
    bodies: list[Mask] = []
    for _ in range(CANDIDATES * wanted):
        centre = places[int(rng.integers(len(places)))]
        edge = draw_scale(rng, *BODY_RADII) * inside.shape[0]
        squares = [
            ((axis - place) / (edge * draw_scale(rng, 1 / BODY_STRETCH, BODY_STRETCH))) ** 2
            for axis, place in zip(axes, centre, strict=True)
        ]
        body = (squares[0] + squares[1] + squares[2] <= 1) & inside
        fits = np.count_nonzero(body) >= REGION_VOLUME[0] * body.size
        if fits and not _found_before(body, bodies):
            bodies.append(body)
        if len(bodies) == wanted:
            break
    return bodies


def stands_out(image: Image, region: Mask, inside: Mask, fill: float) -> bool:
    """Whether a region has a fit size, is not empty space and differs from the shell around it."""
    size = np.count_nonzero(region)
    if not REGION_VOLUME[0] * region.size <= size <= REGION_VOLUME[1] * region.size:
        return False
    box = tuple(
        slice(max(s.start - SHELL, 0), s.stop + SHELL)
        for s in ndimage.find_objects(region.view(np.uint8))[0]
    )
    core = region[box]
    shell = ndimage.binary_dilation(core, iterations=SHELL) & ~core & inside[box]
    own, other = image[box][core], image[box][shell]
    contrast = float(image[inside].std())
    if abs(float(np.median(own)) - fill) < EMPTY * contrast:
        return False
    spread = max(SHELL_DEVIATIONS * float(own.std()), 0.1 * contrast)
    different = np.count_nonzero(np.abs(other - own.mean()) > spread)
    return bool(other.size > 0 and different > SHELL_DIFFERENT * other.size)


def supervoxels(image: Image, edge: int, weight: float, iterations: int = 2) -> Labels:
    """SLIC-like: each voxel joins one of its 8 nearest cells, by position and intensity.

    image: (B, B, B), smoothed. edge: cell edge in voxels. weight: of the squared intensity
    difference (in standard deviations) against the squared distance (in cells).
    returns: cell numbers (B, B, B), 0-based. Only the cells' intensities are updated: with fixed
    centres the distance splits by axis, which makes this 10 times faster than SLIC proper.
    """
    size = image.shape[0]
    cells = _cells(size, edge)
    values = ((image - image.mean()) / max(float(image.std()), 1e-6)).astype(np.float32)
    position = (np.arange(size) + 0.5) * cells / size - 0.5
    lower = np.clip(np.floor(position).astype(np.int32), 0, cells - 2)
    start = np.clip(np.rint(position).astype(np.int32), 0, cells - 1)
    label: Labels = (start[:, None, None] * cells + start[:, None]) * cells + start
    squares = [((position - lower - corner) ** 2).astype(np.float32) for corner in (0, 1)]
    for _ in range(iterations):
        level = _means(values, label, cells**3).reshape(cells, cells, cells)
        best = np.full(image.shape, np.inf, np.float32)
        choice = np.zeros(image.shape, np.uint8)
        for number, (i, j, k) in enumerate(np.ndindex(2, 2, 2)):
            distance = values - level[np.ix_(lower + i, lower + j, lower + k)]
            np.multiply(distance, distance, out=distance)
            distance *= weight
            distance += squares[i][:, None, None] + squares[j][:, None] + squares[k]
            np.copyto(choice, np.uint8(number), where=distance < best)
            np.minimum(best, distance, out=best)
        label = (lower[:, None, None] + (choice >> 2)) * np.int32(cells)
        label = (label + lower[:, None] + ((choice >> 1) & 1)) * np.int32(cells)
        label = (label + lower + (choice & 1)).astype(np.int32, copy=False)
    return label


def _supervoxel_groups(
    image: Image, inside: Mask, rng: np.random.Generator, wanted: int
) -> Iterator[Mask]:
    """Connected groups of similar neighbouring supervoxels around random seeds."""
    smooth = ndimage.gaussian_filter(image, float(rng.uniform(0.5, 1.5)))
    edge = int(rng.choice(SUPERVOXEL_EDGES))
    label = supervoxels(smooth, edge, weight=float(rng.uniform(0.5, 3.0)))
    label[~inside] = -1  # the last entry of a table below, which is never a member
    flat = label[inside]
    cells = _cells(image.shape[0], edge)
    count = np.bincount(flat, minlength=cells**3)
    level = _means(smooth[inside], flat, cells**3) / max(float(smooth[inside].std()), 1e-6)
    place = np.stack(np.unravel_index(np.arange(count.size), (cells,) * 3), axis=1)
    for seed in rng.permutation(np.flatnonzero(count))[:wanted]:
        distance = np.abs(place - place[seed]).max(axis=1)
        unlike = np.abs(level - level[seed]) + 0.3 * distance
        alike = np.abs(level - level[seed]) < GROUP_LEVELS
        near = np.flatnonzero((distance <= 2) & (count > 0) & alike)
        order = near[np.argsort(unlike[near], kind="stable")]
        member = np.zeros(count.size + 1, bool)
        member[order[: int(rng.integers(1, 7))]] = True
        # A supervoxel reaches one cell further than its own; the group two from the seed.
        low = np.maximum((place[seed] - 3) * image.shape[0] // cells, 0)
        high = (place[seed] + 4) * image.shape[0] // cells + 1
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        region = np.zeros(image.shape, bool)
        region[box] = member[label[box]]
        yield _largest_part(region)


def _thresholded(
    image: Image, inside: Mask, rng: np.random.Generator, wanted: int
) -> Iterator[Mask]:
    """Connected parts of a random band of the smoothed image.

    The band is one of quantiles (large structures) or of intensities (small bright or dark ones, of
    which quantiles know nothing), and reaches one end of the range in one of three cases.
    """
    smooth = ndimage.gaussian_filter(image, float(rng.uniform(0.8, 2.0)))
    width = rng.uniform(0.05, 0.4)
    low = 1 - width if rng.random() < 0.3 else rng.uniform(0, 1 - width)
    ends = [low, min(1.0, low + width)]
    sample = smooth[inside][::7]
    if rng.random() < 0.5:
        first, last = np.quantile(sample, ends)
    else:
        first, last = np.interp(ends, [0, 1], [sample.min(), sample.max()])
    last = np.inf if ends[1] >= 1 else last
    band = (smooth >= first) & (smooth <= last) & inside
    band = ndimage.binary_opening(band) if rng.random() < 0.5 else band
    parts, number = ndimage.label(band)
    sizes = np.bincount(parts.reshape(-1), minlength=number + 1)[1:]
    fitting = np.flatnonzero(
        (sizes >= REGION_VOLUME[0] * image.size) & (sizes <= REGION_VOLUME[1] * image.size)
    )
    for part in rng.permutation(fitting + 1)[:wanted]:
        yield parts == part


def _found_before(region: Mask, regions: Sequence[Mask]) -> bool:
    """Whether half of a region, or of an earlier one, is in both."""
    size = np.count_nonzero(region)
    return any(
        np.count_nonzero(region & other) > 0.5 * min(size, np.count_nonzero(other))
        for other in regions
    )


def _largest_part(mask: Mask) -> Mask:
    """The largest connected part of a mask with at least one voxel."""
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    parts, number = ndimage.label(mask[box])
    if number <= 1:
        return mask
    result = np.zeros_like(mask)
    result[box] = parts == np.bincount(parts[mask[box]]).argmax()
    return result


def _means(values: Image, label: Labels, number: int) -> Image:
    """Mean value of each label 0..number-1 (0 for an empty one)."""
    count = np.bincount(label.reshape(-1), minlength=number)
    total = np.bincount(label.reshape(-1), values.reshape(-1), minlength=number)
    return (total / np.maximum(count, 1)).astype(np.float32)


def _cells(size: int, edge: int) -> int:
    return max(2, round(size / edge))


def _inside(base: View, edge: int, shape: Shape3) -> Mask:
    """Which voxels of the base lie wholly in the volume: (B, B, B)."""
    step = base.matrix[0, 0]
    ramp = (np.arange(edge) - (edge - 1) / 2) * step
    # Half a voxel of the base away from the fill outside, which interpolation mixes in.
    axes = [
        (c + ramp >= 0.5 * step) & (c + ramp <= n - 1 - 0.5 * step)
        for c, n in zip(base.centre, shape, strict=True)
    ]
    return np.asarray(axes[0][:, None, None] & axes[1][:, None] & axes[2])


def _centroid(region: Mask, base: View) -> Float3:
    """Centre of gravity of a region, in voxels of the volume."""
    edge = region.shape[0]
    counts = [region.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    index = np.array([np.average(np.arange(edge), weights=count) for count in counts])
    return np.asarray(base.centre + (index - (edge - 1) / 2) * base.matrix[0, 0], np.float64)


def _origin(base: View, edge: int) -> tuple[float, float, float]:
    """Where the first voxel of the base lies in the volume."""
    z, y, x = (float(c) for c in base.centre - base.ratio * (edge - 1) / 2)
    return z, y, x


def _base_view(centre: Float3, scale: float, patch: int) -> View:
    step = scale * BASE_REACH * patch / base_edge(patch)
    return View(np.asarray(centre, np.float64), np.eye(3) * step)
