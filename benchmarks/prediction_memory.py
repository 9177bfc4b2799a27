"""Time and memory of prediction, for queries of many sizes: python -m benchmarks.prediction_memory

    --growth    B10: length of the volume, number of classes; own side only
    --export    256^3 at 1 mm worked at 4/3 mm, K = 1, 20 and 104 (`sliding_window` is B4)
    --long      a volume of 512 x 512 x 1000 with 104 classes (hours on a slow core: --scale 2
                halves every edge)

Every row runs in a process of its own: from an array on the native grid and a random task of the
tiny network (patch 128, as large as the published one) to native labels. Logits are those of the
random network, where nearly every class wins somewhere in every region, or (`balls`) such as organs
have: the network runs all the same, then its last map is replaced by one of which every class makes
a ball. Memory is the highest resident size (VmHWM), over what the process held after all imports,
beside what was predicted.
Seconds are CPU seconds of one thread: preparing, network, and the rest (logits multiplied out,
blended, brought to the native grid, decided).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.results_table import publish
from iris_cli.inference import streaming
from iris_cli.inference.case import predict_volume
from iris_cli.inference.memory import AS_IT_COMES, case_of
from iris_cli.inference.sliding import Decoding, Maps
from iris_cli.inference.streaming import How
from iris_cli.inference.windows import Layout
from iris_cli.model.model import Model, ModelCard
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.logit_map import LogitMap
from iris_cli.task.task_file import ModelRecord, Task, TaskClass, TaskHeader
from iris_cli.volume.grid import Grid
from iris_cli.volume.orientation import AS_IT_IS
from iris_cli.volume.reading import NativeGeometry, Volume


@dataclass(frozen=True)
class Shape:
    """A query and a task.

    native: (z, y, x) voxels. spacing_xyz: mm. working: mm. patch: voxels. logits: "network" or
    "balls".
    """

    native: tuple[int, int, int]
    spacing_xyz: tuple[float, float, float]
    working: float
    classes: int
    patch: int = 128
    logits: str = "network"


@dataclass(frozen=True)
class Measured:
    """CPU seconds of the parts, windows, and bytes: of the idle process, over them, predicted."""

    prepare: float
    network: float
    export: float
    windows: int
    before: int
    bytes: int
    predicted: int


def make_task(model: Model, shape: Shape) -> Task:
    """Random tokens."""
    config = model.network.config
    stages = tuple((config.tokens, config.stage_channels(i)) for i in range(config.stages))
    classes = tuple(
        TaskClass(name=f"c{i}", value=i + 1, references=1, crops=1, voxels=9, coverage=1)
        for i in range(shape.classes)
    )
    header = TaskHeader(
        model=ModelRecord(name="tiny", version="1", fingerprint=model.card.fingerprint),
        profile=model.card.profile,
        spacing_mm=shape.working,
        modality="ct",
        classes=classes,
        groups=(tuple(range(shape.classes)),),
        stages=stages,
    )
    generator = np.random.default_rng(0)
    tokens = [generator.normal(size=(shape.classes, *s)).astype(np.float32) for s in stages]
    return Task(header, tuple(tokens))


def make_volume(shape: Shape) -> Volume:
    """Noise of a CT's type and range; plane by plane, so that making it takes no memory."""
    generator = np.random.default_rng(0)
    array = np.empty(shape.native, np.int16)
    for plane in array:
        plane[...] = generator.integers(-1000, 600, plane.shape, np.int16)
    grid = Grid.from_spacing(shape.native, shape.spacing_xyz)
    return Volume(array, grid, NativeGeometry(grid, AS_IT_IS, None, ".nii.gz"), Path("noise"))


def measure(shape: Shape) -> Measured:
    """One prediction in this process, which has done nothing else yet."""
    torch.manual_seed(0)
    network = IrisNetwork(NetworkConfig.tiny()).eval()
    card = ModelCard.of(network, name="tiny", s0=shape.working, patch=shape.patch)
    model = Model(network, card)
    task = make_task(model, shape)
    before = memory_now("VmRSS")
    volume = make_volume(shape)
    need = case_of(model, task, volume.grid, volume.array.nbytes, "cpu", "fp32")
    expected = dataclasses.replace(need, resident=0).predict(AS_IT_COMES).ram
    layout = Layout(volume.grid.working(shape.working).shape_zyx, (shape.patch,) * 3)
    balls = Balls(layout, shape.classes) if shape.logits == "balls" else None
    timed = Timed(balls)
    started = time.process_time()
    found = predict_volume(model, task, volume, how=How())
    total = time.process_time() - started
    return Measured(
        prepare=timed.sweep_began - started,
        network=timed.network,
        export=total - timed.network - (timed.sweep_began - started),
        windows=found.windows.all,
        before=before,
        bytes=memory_now("VmHWM") - before,
        predicted=expected,
    )


class Timed:
    """Watches the network and the beginning of the sweep, in this process from now on."""

    def __init__(self, balls: Balls | None) -> None:
        self.network = 0.0
        self.sweep_began = 0.0
        timed = self

        class TimedDecoding(Decoding):
            def __call__(self, crops: np.ndarray) -> list[Maps]:
                started = time.process_time()
                timed.sweep_began = timed.sweep_began or started
                found = super().__call__(crops)
                timed.network += time.process_time() - started
                return found if balls is None else balls.maps()

        vars(streaming)["Decoding"] = TimedDecoding


class Balls:
    """Logits of one ball per class: map (z, y, x, square of their length, 1), window by window."""

    def __init__(self, layout: Layout, classes: int) -> None:
        self._layout, self._cells = layout, iter(layout.cells())
        self._size = float(max(layout.shape))
        generator = np.random.default_rng(0)
        centre = generator.uniform(0, np.array(layout.shape) / self._size, (classes, 3))
        radius = generator.uniform(0.3, 0.8, classes) / (classes ** (1 / 3) + 1)
        square = radius**2 - (centre**2).sum(axis=1)
        weights = np.column_stack([2 * centre, np.full(classes, -1.0), square])
        self._weights = torch.from_numpy(weights).float()[None, :, None]

    def maps(self) -> list[Maps]:
        """Of the next window."""
        start = self._layout.start(next(self._cells))
        axes = [
            (torch.arange(n) + first) / self._size
            for first, n in zip(start, self._layout.patch, strict=True)
        ]
        z, y, x = torch.meshgrid(*axes, indexing="ij")
        features = torch.stack([z, y, x, z * z + y * y + x * x, torch.ones_like(z)])
        return [(LogitMap(features[None], self._weights, None),)]


def memory_now(what: str) -> int:
    """Bytes of this process: VmRSS is what it holds, VmHWM the most it ever held (Linux)."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{what}:")[2].split()[0]) * 1024


def measure_apart(shape: Shape) -> Measured:
    """`measure` in a process of its own."""
    text = json.dumps(dataclasses.asdict(shape))
    line = [sys.executable, "-m", "benchmarks.prediction_memory", "--measure", text]
    found = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    return Measured(**json.loads(found.stdout))


def shapes_of(given: argparse.Namespace) -> list[Shape]:
    """The rows that were asked for."""
    shapes: list[Shape] = []
    if given.export:
        grid = ((256, 256, 256), (1.0, 1.0, 1.0), 4 / 3)
        shapes += [Shape(*grid, classes) for classes in (1, 20, 104)]
        shapes += [Shape(*grid, classes, logits="balls") for classes in (20, 104)]
    if given.growth:
        base = ((160, 160, 160), (1.0, 1.0, 1.0), 1.0)
        shapes += [Shape(*base, classes, 64) for classes in (1, 13, 26, 52, 104)]
        shapes += [Shape((n, 96, 96), *base[1:], 13, 64) for n in (128, 256, 512, 1024)]
    if given.long:
        z, y, x = (n // given.scale for n in (1000, 512, 512))
        shapes.append(Shape((z, y, x), (0.8, 0.8, 1.0), 1.5, 104))
    return shapes


def main() -> None:
    """Print the table and append it to the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("growth", "export", "long"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--measure", metavar="SHAPE", help="measure this one here, as JSON")
    given = parser.parse_args()
    if given.measure:
        torch.set_num_threads(1)
        found = measure(Shape(**json.loads(given.measure)))
        sys.stdout.write(json.dumps(dataclasses.asdict(found)) + "\n")
        return
    rows = [row(shape, measure_apart(shape)) for shape in shapes_of(given)]
    head = ("native, z x y x x", "mm", "K", "logits", "patch", "windows", "prepare, CPU s",
            "network, CPU s", "export, CPU s", "peak MB", "predicted MB")  # fmt: skip
    publish("prediction_memory", "prediction, tiny network", ["one thread, fp32"], head, rows)


def row(shape: Shape, found: Measured) -> list[str]:
    """One line of the table."""
    return [
        " x ".join(map(str, shape.native)),
        f"{shape.working:.3g}",
        str(shape.classes),
        shape.logits,
        str(shape.patch),
        str(found.windows),
        *(f"{seconds:.1f}" for seconds in (found.prepare, found.network, found.export)),
        f"{found.bytes / 1e6:.0f}",
        f"{found.predicted / 1e6:.0f}",
    ]


if __name__ == "__main__":
    main()
