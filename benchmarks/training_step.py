"""B7: one training step, ours against the literal definition: python -m benchmarks.training_step

A step is encode + decode + loss + backward + clip + LAMB + averaged weights of one episode with
one reference and four classes. Three sides take turns on the same weights and episode: the literal
definition (benchmarks/literal_network.py) in eager fp32, ours in fp32 (what the form gives), ours
in its default precision (what bf16 gives on top, where the device has it). Loss, optimiser and
averaging are the same code on all sides. On a CPU one thread, CPU seconds; the released network at
half width and a smaller one, both at 64^3. With --device cuda the full width at 128^3, seconds
between two synchronisations, TF32 off. `--profile` prints where the time of our step goes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.literal_network import LiteralNetwork
from benchmarks.results_table import publish, spread
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.precision import autocast_type, compute_in
from iris_cli.training.loss import episode_loss
from iris_cli.training.optimiser import AveragedWeights, build_optimiser
from iris_cli.training.settings import OptimiserSettings

TARGET = 2.5
CLASSES = 4
RELEASED = NetworkConfig.released(bank_size=None)


@dataclass(frozen=True)
class Case:
    name: str
    config: NetworkConfig
    patch: int


CPU_CASES = (
    Case("16-32-64-64-64", RELEASED.model_copy(update={"channels": (16, 32, 64, 64, 64)}), 64),
    Case("half width", RELEASED.model_copy(update={"channels": (16, 32, 64, 128, 256)}), 64),
)
CUDA_CASES = (Case("full width", RELEASED, 128),)


@dataclass(frozen=True)
class Episode:
    """query, reference: (1, 1, P, P, P); reference_masks, query_masks: (1, K, P, P, P) bool."""

    query: Tensor
    reference: Tensor
    reference_masks: Tensor
    query_masks: Tensor

    @classmethod
    def of_balls(cls, patch: int, device: torch.device) -> Episode:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, 1, 1, patch, patch, patch, generator=generator)
        axes = torch.meshgrid(*[torch.arange(patch)] * 3, indexing="ij")
        centres = torch.randint(patch // 4, 3 * patch // 4, (2, 1, CLASSES, 3), generator=generator)
        distance = sum(
            (axis - centres[..., i, None, None, None]) ** 2 for i, axis in enumerate(axes)
        )
        masks = torch.as_tensor(distance <= (patch // 8) ** 2)
        images = images + masks.sum(dim=2, keepdim=True)
        return cls(*(t.to(device) for t in (*images, *masks)))


class Side:
    """A network with all that takes a step of it."""

    def __init__(
        self,
        network: nn.Module,
        logits: Callable[[Episode], Tensor],
        device: torch.device,
        precision: str,
    ) -> None:
        self.network, self.logits, self.device = network, logits, device
        self.kind = autocast_type(precision, device)
        self.optimiser = build_optimiser(network.parameters(), OptimiserSettings())
        self.average = AveragedWeights(network, 0.999)
        self.steps = 0

    def step(self, episode: Episode) -> float:
        """Loss after which the weights have moved once."""
        masks = episode.query_masks
        counted = torch.ones_like(masks[:, 0])
        valid = torch.ones(masks.shape[:2], dtype=torch.bool, device=self.device)
        self.optimiser.zero_grad(set_to_none=True)
        with compute_in(self.kind, self.device):
            loss = episode_loss(self.logits(episode), masks, counted, valid).mean
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.average.update(self.network, self.steps)
        self.steps += 1
        return float(loss.detach())


@dataclass(frozen=True)
class Reading:
    seconds: float
    peak_mb: float | None
    loss: float


def main() -> None:
    """Measure all cases of the device and append the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = []
    for case in CUDA_CASES if device.type == "cuda" else CPU_CASES:
        episode = Episode.of_balls(case.patch, device)
        sides = _sides(case.config, device)
        if arguments.profile:
            _profile(sides["ours, default precision"], episode)
            continue
        rows += _rows(case, _measure(sides, episode, arguments.runs))
    if rows:
        publish(
            "training_step",
            "one training step, one episode, one reference, four classes",
            _notes(device, arguments.runs),
            ("network, patch", "side", "seconds", "gain over literal", "peak MB", "first loss"),
            rows,
            words=2,
        )


def _sides(config: NetworkConfig, device: torch.device) -> dict[str, Side]:
    torch.manual_seed(0)
    first = IrisNetwork(config)
    weights = first.state_dict()

    def ours(precision: str) -> Side:
        network = IrisNetwork(config)
        network.load_state_dict(weights)
        network.to(device)
        return Side(network, lambda episode: _logits(network, episode), device, precision)

    literal = LiteralNetwork(config)
    literal.load_state_dict(weights)
    literal.to(device)
    return {
        "literal, fp32": Side(
            literal, lambda e: literal(e.query, e.reference, e.reference_masks), device, "float32"
        ),
        "ours, fp32": ours("float32"),
        "ours, default precision": ours("auto"),
    }


def _logits(network: IrisNetwork, episode: Episode) -> Tensor:
    # As the training loop does: one pass of the encoder for query and reference.
    features = network.encode_image(torch.cat([episode.query, episode.reference]))
    valid = torch.ones(episode.query_masks.shape[:2], dtype=torch.bool, device=episode.query.device)
    tokens = network.encode_task([f[1:] for f in features], episode.reference_masks, valid)
    return network.decode([f[:1] for f in features], tokens, valid)


def _measure(sides: dict[str, Side], episode: Episode, runs: int) -> dict[str, list[Reading]]:
    """One step to warm up, then `runs` rounds in which the sides take turns."""
    readings: dict[str, list[Reading]] = {name: [] for name in sides}
    first = {name: side.step(episode) for name, side in sides.items()}
    for number in range(runs):
        for name, side in sides.items():
            reading = _read(side, episode, first[name])
            readings[name].append(reading)
            sys.stderr.write(f"{number} {name}: {reading.seconds:.2f} s\n")
    return readings


def _read(side: Side, episode: Episode, loss: float) -> Reading:
    if side.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        side.step(episode)
        torch.cuda.synchronize()
        seconds, peak = time.perf_counter() - began, torch.cuda.max_memory_allocated() / 1e6
    else:
        began = time.process_time()
        side.step(episode)
        seconds, peak = time.process_time() - began, None
    return Reading(seconds, peak, loss)


def _rows(case: Case, readings: dict[str, list[Reading]]) -> list[list[str]]:
    seconds = {side: median(r.seconds for r in read) for side, read in readings.items()}
    literal, form, both = seconds.values()
    met = "reached" if literal / both >= TARGET else "missed"
    gains = (
        "1",
        f"{literal / form:.2f}x by the form",
        f"{literal / both:.2f}x, of it {form / both:.2f}x by precision; {TARGET}x {met}",
    )
    return [
        [
            f"{case.name}, {case.patch}^3",
            side,
            spread([r.seconds for r in read]),
            gain,
            _peak(read),
            f"{read[0].loss:.4f}",
        ]
        for (side, read), gain in zip(readings.items(), gains, strict=True)
    ]


def _peak(readings: Sequence[Reading]) -> str:
    peaks = [reading.peak_mb for reading in readings if reading.peak_mb is not None]
    return f"{median(peaks):.0f}" if peaks else "-"


def _notes(device: torch.device, runs: int) -> Sequence[str]:
    rounds = f"median of {runs} alternating runs (lowest-highest)"
    if device.type == "cuda":
        return (torch.cuda.get_device_name(device), rounds, "seconds; peak of allocated memory")
    kind = str(autocast_type("auto", device) or torch.float32).removeprefix("torch.")
    return (
        "one thread, CPU seconds",
        rounds,
        f"default precision here {kind}",
    )


def _profile(side: Side, episode: Episode) -> None:
    from torch.profiler import ProfilerActivity, profile

    side.step(episode)
    activities = [ProfilerActivity.CPU]
    if side.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        side.step(episode)
    order = f"self_{side.device.type}_time_total"
    sys.stdout.write(profiler.key_averages().table(sort_by=order, row_limit=30) + "\n")


if __name__ == "__main__":
    main()
