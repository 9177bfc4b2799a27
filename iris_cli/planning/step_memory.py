"""How much memory one training step holds at its worst moment, found by acting it out.

The step is run as it is, on tensors without memory (torch's fake tensors): every allocation and
release of forward and backward pass happens in the order of a real step, and only sizes are kept.
What operators need inside of themselves is not seen; for convolutions on a CPU, where that is as
large as their input and output, it is added. A torch built without CUDA has no fake CUDA tensors,
so a step on CUDA is acted out on the CPU, and what autocast does otherwise there is added.
"""

from __future__ import annotations

import math
import weakref
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from iris_cli.network.iris_network import IrisNetwork
from iris_cli.planning.step_shape import StepShape
from iris_cli.training.batches import collate
from iris_cli.training.episodes import Episode
from iris_cli.training.loss import episode_loss
from iris_cli.training.step import EpisodeNetwork

aten = torch.ops.aten
# Smaller blocks come from malloc's heap, larger ones from the system and go back there at once.
HEAP_BLOCK = 32 << 20
# oneDNN reads and writes maps in blocks of so many channels: it copies them there and back.
CHANNEL_BLOCK = 16
# Under autocast on CUDA norms read and write float32: where a CPU keeps input and output in two
# bytes a value for the backward pass, there are four of both and two of what a convolution reads.
NORM_ON_CUDA = 4


@dataclass(frozen=True)
class Peak:
    """Most bytes alive at one time, and how many of them lay in blocks below `HEAP_BLOCK`.

    operations: floating point operations of the whole step.
    """

    total: int = 0
    heap: int = 0
    operations: int = 0


@cache
def peak_of_step(step: StepShape) -> Peak:
    """What is alive at the worst moment of forward and backward pass, weights not counted."""
    live = _LiveBytes(cuda=step.device == "cuda")
    half = step.precision == "bfloat16"
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        network = IrisNetwork(step.network)
        model = EpisodeNetwork(network, recompute=step.recompute)
        stack.enter_context(live)
        if step.gradients:
            for parameter in network.parameters():
                parameter.grad = torch.empty_like(parameter)
        batch = collate([_episode(step, i) for i in range(step.episodes)])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits, _ = model(batch)
            loss = episode_loss(
                logits, batch.query_masks, batch.counted, batch.loss_valid, batch.decoy
            )
        loss.sum.backward()  # type: ignore[no-untyped-call]
    return replace(live.peak, operations=live.operations)


def _episode(step: StepShape, index: int) -> Episode:
    shape, references, classes = (step.patch,) * 3, step.references, step.classes
    return Episode(
        index=index,
        kind="real",
        source="",
        names=("",) * classes,
        keys=(None,) * classes,
        query=torch.empty(shape),
        references=torch.empty((references, *shape)),
        query_masks=torch.empty((classes, *shape), dtype=torch.bool),
        reference_masks=torch.empty((references, classes, *shape), dtype=torch.bool),
        query_valid=torch.empty(classes, dtype=torch.bool),
        reference_valid=torch.empty((references, classes), dtype=torch.bool),
        counted=torch.empty(shape, dtype=torch.bool),
    )


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operators return, until nobody holds them."""

    def __init__(self, *, cuda: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = Peak()
        self.operations = 0
        self._live = Peak()
        self._sizes: dict[int, int] = {}
        self._cuda = cuda

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # asked most often, and slow to answer otherwise
            return torch.device("cpu")
        result = _answer(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=result)
        times = NORM_ON_CUDA if self._cuda and func in _NORMS and _is_half(args[0]) else 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._keep(leaf.untyped_storage(), times)
        now = self._live
        for copied in () if self._cuda else _copies(func, args):
            now = _plus(now, copied)
        if now.total > self.peak.total:
            self.peak = now
        return result

    def _keep(self, storage: torch.UntypedStorage, times: int) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes() * times
            self._live = _plus(self._live, self._sizes[key])
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self._live = _plus(self._live, -self._sizes.pop(key))


def _plus(peak: Peak, block: int) -> Peak:
    return Peak(peak.total + block, peak.heap + (block if abs(block) < HEAP_BLOCK else 0))


_NORMS = (aten.native_group_norm.default, aten.native_layer_norm.default)


def _is_half(x: torch.Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _answer(func: Any, args: tuple[Any, ...]) -> Any:
    """What cannot be known without values, as it is where every class is in every reference."""
    if func is aten._local_scalar_dense.default:
        return True
    if func is aten.nonzero.default:
        return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
    if func is aten.index.Tensor and _is_mask(args[1]):
        mask = args[1][0]
        return args[0].new_empty((mask.numel(), *args[0].shape[mask.dim() :]))
    if func is aten.index_put.default and _is_mask(args[1]):
        return torch.empty_like(args[0])
    return None


def _is_mask(indices: Any) -> bool:
    return indices[0] is not None and indices[0].dtype == torch.bool


def _copies(func: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
    """Bytes of the blocked copies that a convolution on the CPU makes of its maps."""
    if func is aten.convolution.default:
        image, weight = args[:2]
        return _blocked(image), _blocked(image, channels=weight.shape[0])
    if func is aten.convolution_backward.default:
        gradient, image = args[:2]
        return _blocked(gradient), _blocked(image)
    return ()


def _blocked(x: torch.Tensor, channels: int | None = None) -> int:
    whole = math.ceil((channels or x.shape[1]) / CHANNEL_BLOCK) * CHANNEL_BLOCK
    return x.shape[0] * whole * math.prod(x.shape[2:]) * x.element_size()
