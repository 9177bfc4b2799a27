"""Memory of a prediction: how much it will take, told from shapes, and how it is made to fit.

The ladder, each rung on top of those before: one window at a time; what waits in the memory of the
host instead of the device's; fewer logits at once on a device; the labels in a file. Where the last
one does not fit the case is refused with the numbers. No rung changes a result but by rounding.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iris_cli.errors import EnvironmentProblem
from iris_cli.execution.memory import resident_bytes
from iris_cli.inference.windows import Layout
from iris_cli.model.model import Model
from iris_cli.network.blocks import ResidualBlock
from iris_cli.network.config import NetworkConfig
from iris_cli.preparation import mass
from iris_cli.task.task_file import Task
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import smallest_label_type
from iris_cli.volume.resampling import SLAB_VOXELS

# Logits of all classes that are multiplied out and decided at once: on a device, a few launches
# for many; on a CPU, what stays in its cache.
BLOCK_VALUES = 1 << 23
SMALL_BLOCK = BLOCK_VALUES >> 3
CACHE_VALUES = 1 << 19
# Rows of a region that is decided at once on a CPU: below, most of the work is in calling; above,
# fewer classes are left out.
SMALLEST_EDGE = 8
LARGEST_EDGE = 32
# Of each of them, bytes in work: interpolated along each axis, compared.
VALUE_BYTES = 32
# Held at once by the widest level of a network, for each of its voxels and channels (measured:
# benchmarks/results/prediction_memory.md).
ACTIVATIONS = 5
# Memory of the parts of windows that wait, with what lies free between them (measured, too).
KEPT_SPARE = 1.25
# What the libraries take for themselves when they are first used.
LIBRARY_BYTES = 60_000_000
# Of every working voxel of a profile that does not stream: labels of 16 bits in parts, joined, and
# cleaned; float32 copies for statistics, parts of the body.
WHOLE_LABELS = 6
WHOLE_PREPARE = 16
# Of every voxel in a slab while a query is prepared.
PREPARE_SLAB = 20


@dataclass(frozen=True)
class Means:
    """How a prediction is run; see the ladder above.

    window_batch: windows in one pass. block_values: logits decided at once on a device.
    """

    window_batch: int = 1
    on_host: bool = False
    block_values: int = BLOCK_VALUES
    labels_in_file: bool = False

    def said(self, first: Means) -> list[str]:
        """The rungs between `first` and this, in words for the receipt."""
        steps = (
            (self.window_batch != first.window_batch, f"window batch {self.window_batch}"),
            (self.on_host != first.on_host, "sums in host memory"),
            (self.block_values != first.block_values, f"blocks of {self.block_values} logits"),
            (self.labels_in_file != first.labels_in_file, "labels in a file"),
        )
        return [words for taken, words in steps if taken]


AS_IT_COMES = Means()


def values_at_once(means: Means, device: str) -> int:
    """Logits that are decided at once."""
    on_device = torch.device(device).type == "cuda"
    return means.block_values if on_device else min(means.block_values, CACHE_VALUES)


def ladder(first: Means, *, cuda: bool, streamed: bool = True) -> Iterator[Means]:
    """`first` and every rung below it. streamed: labels come slab by slab; profile iris-1 does."""
    yield first
    if first.window_batch > 1:
        yield (first := dataclasses.replace(first, window_batch=1))
    if cuda and not first.on_host:
        yield (first := dataclasses.replace(first, on_host=True))
    if not streamed:
        return
    if cuda and first.block_values > SMALL_BLOCK:
        yield (first := dataclasses.replace(first, block_values=SMALL_BLOCK))
    if not first.labels_in_file:
        yield dataclasses.replace(first, labels_in_file=True)


@dataclass(frozen=True)
class Limits:
    """Most bytes to take, None where nobody said: of the host's memory, and of the device's."""

    ram: int | None = None
    vram: int | None = None

    def with_free_memory_of(self, device: str) -> Limits:
        """A device gives what it has free where nobody said how much."""
        place = torch.device(device)
        if self.vram is not None or place.type != "cuda":
            return self
        free, _ = torch.cuda.mem_get_info(place)
        return Limits(self.ram, int(free))


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Sizes:
    """Bytes of the parts of a prediction.

    maps, sums: of the two forms of blending. window: activations of the network for one window.
    """

    maps: int
    sums: int
    window: int

    @classmethod
    def of(
        cls, config: NetworkConfig, layout: Layout, classes: int, groups: int, precision: str
    ) -> Sizes:
        """classes: whose logits are wanted. groups: that are decoded apart."""
        item = 4 if precision == "fp32" else 2
        level = config.channels[0] * math.prod(layout.patch) // config.fold**3
        kept, cells = layout.waiting()
        maps = int(KEPT_SPARE * groups * item * config.channels[0] * kept) // config.fold**3
        return cls(maps, 4 * (classes + 1) * cells, ACTIVATIONS * 4 * level)

    @classmethod
    def of_rows(
        cls, config: NetworkConfig, shape: Sequence[int], patch: int, classes: int
    ) -> Sizes:
        """Of profile mass-1, which sums a row of windows along z. shape: working (z, y, x)."""
        plane = math.prod(max(n, patch) for n in shape[1:])
        sums = 4 * (classes + 1) * patch * plane
        level = config.channels[0] * patch**3 // config.fold**3
        return cls(sums, sums, ACTIVATIONS * 4 * level)

    @property
    def blend(self) -> int:
        """Of the form that is chosen: the smaller one."""
        return min(self.maps, self.sums)


@dataclass(frozen=True)
class Need:
    """Most bytes that a case will take of the host's memory and of the device's."""

    ram: int
    vram: int

    def fits(self, limits: Limits) -> bool:
        """Whether both are within the limits."""
        return (limits.ram is None or self.ram <= limits.ram) and (
            limits.vram is None or self.vram <= limits.vram
        )


@dataclass(frozen=True)
class Case:
    """What the memory of a case follows from.

    native, working: voxels. native_bytes: of the query's array. label_bytes: of the labels.
    resident: bytes the process holds before, the model among them. weights: bytes of the model.
    write_voxel: bytes for each voxel while the largest file beside the labels is written. filters:
    bytes of those that kernels will make of the weights. streamed: labels come slab by slab; else
    they are decided on the working grid as a whole (profile mass-1).
    """

    native: int
    native_bytes: int
    label_bytes: int
    working: int
    classes: int
    sizes: Sizes
    resident: int
    weights: int
    cuda: bool
    write_voxel: int = 0
    filters: int = 0
    streamed: bool = True

    @property
    def writing_bytes(self) -> int:
        """What writing and checking the labels and other files takes beside them."""
        return max(2 * self.label_bytes, self.write_voxel * self.native)

    def rungs(self, first: Means) -> Iterator[Means]:
        """`first` and what may be done where it does not fit."""
        return ladder(first, cuda=self.cuda, streamed=self.streamed)

    def predict(self, means: Means) -> Need:
        """The larger of: preparing the query, the network, writing and checking the labels."""
        device = "cuda" if self.cuda else "cpu"
        voxels = self.native if self.cuda else LARGEST_EDGE**3
        block = VALUE_BYTES * min(values_at_once(means, device), self.classes * voxels)
        network = means.window_batch * self.sizes.window
        labels = 0 if means.labels_in_file else self.label_bytes
        on_device = 0 if means.on_host else self.sizes.blend
        vram = self.weights + network + block + on_device if self.cuda else 0
        sweep = 4 * self.working + labels + self.sizes.blend - (on_device if self.cuda else 0)
        sweep += 0 if self.cuda else network + block
        prepare = self.native_bytes + 4 * self.working
        prepare += PREPARE_SLAB * min(SLAB_VOXELS, self.native)
        if not self.streamed:
            sweep += WHOLE_LABELS * self.working
            prepare += WHOLE_PREPARE * self.working
        sweep += self.filters
        write = self.filters + labels + self.writing_bytes
        most = max(prepare, sweep, write)
        return Need(self.resident + LIBRARY_BYTES + self.native_bytes + most, vram)

    def fit(self, first: Means, limits: Limits) -> tuple[Means, Need]:
        """The first rung whose prediction is within the limits.

        raises EnvironmentProblem where the last one is not.
        """
        need = self.predict(first)
        for means in self.rungs(first):
            need = self.predict(means)
            if need.fits(limits):
                return means, need
        problem = EnvironmentProblem(
            "this query does not fit the memory it may take",
            found=f"at least {_said(need.ram)} of memory"
            + (f" and {_said(need.vram)} of the device" if self.cuda else ""),
            expected=f"at most {_said(limits.ram)}"
            + (f" and {_said(limits.vram)}" if self.cuda else ""),
            fix="raise --max-ram or --max-vram, use a coarser task, or cut the volume",
        )
        # As where it runs out: a failure of this case and not of every one (`error_parts`).
        raise problem from MemoryError()


def case_of(
    model: Model,
    task: Task,
    native: Grid,
    native_bytes: int,
    device: str,
    precision: str,
    *,
    write_voxel: int = 0,
) -> Case:
    """What the memory of a query follows from. native_bytes: of its array; write_voxel: `Case`."""
    working = native.working(task.header.spacing_mm)
    patch = (model.card.patch,) * 3
    layout = Layout(working.shape_zyx, patch)
    values = [entry.value for entry in task.header.classes]
    kind = smallest_label_type(0, max(values))
    config, cuda = model.network.config, torch.device(device).type == "cuda"
    sizes = Sizes.of(config, layout, len(values), len(task.header.groups), precision)
    streamed = model.card.profile != mass.PROFILE
    if not streamed:
        kind = np.result_type(np.uint16, kind)
        sizes = Sizes.of_rows(config, working.shape_zyx, model.card.patch, len(values))
    return Case(
        native=math.prod(native.shape_zyx),
        native_bytes=native_bytes,
        label_bytes=math.prod(native.shape_zyx) * kind.itemsize,
        working=math.prod(working.shape_zyx),
        classes=len(values),
        sizes=sizes,
        resident=resident_bytes() or 0,
        weights=sum(p.numel() * p.element_size() for p in model.network.parameters()),
        cuda=cuda,
        write_voxel=write_voxel,
        filters=0 if cuda else _filter_bytes(model.network, precision),
        streamed=streamed,
    )


def _filter_bytes(network: torch.nn.Module, precision: str) -> int:
    """Most bytes of the filters that are still to be made; those that are there are resident.

    Filters of deep maps have twice the weights (`kernels.depth_filter`).
    """
    item = 4 if precision == "fp32" else 2
    blocks = [block for block in network.modules() if isinstance(block, ResidualBlock)]
    return sum(
        2 * item * parameter.numel()
        for block in blocks
        if not any(cache.is_used for cache in block.filters)
        for parameter in block.parameters()
        if parameter.ndim == 5
    )


def in_file(folder: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array of zeros whose voxels are in a file without a name, gone when nobody uses it."""
    folder.mkdir(parents=True, exist_ok=True)
    size = math.prod(shape) * dtype.itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Reserved: a disk that is full while the array is written would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "r+", shape=tuple(shape))
    except OSError as error:
        raise EnvironmentProblem(
            "no room for the labels in a file",
            file=folder,
            found=error.strerror,
            expected=f"room for {size} bytes",
        ) from error


def _said(size: int | None) -> str:
    return "any" if size is None else f"{size / 1e9:.2f} GB"
