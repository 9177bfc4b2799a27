"""A model for Python: arrays in, arrays out, no files and no task format.

from iris_cli.workflows import load_model

model = load_model("mass-base", device="cuda")
tokens = model.encode(reference, masks)
logits = model.decode(query, tokens)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iris_cli.errors import DataRefused, UsageError
from iris_cli.model.card import ModelCard
from iris_cli.model.model import load_model as load
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.precision import Precision, autocast_type, choose_precision, compute_in
from iris_cli.workflows.devices import choose_device

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class InContextModel:
    """A model ready to compute on one device.

    Images are expected as the model's profile prepares them (`card.profile`): at the working
    spacing `card.s0` or another one that fits the object, and normalised. Sizes must be multiples
    of `size_multiple` along every axis; windows of `card.patch` voxels are what it was trained on.
    What comes back is numpy where the image is numpy, else torch on the image's device.
    """

    network: IrisNetwork
    card: ModelCard
    device: torch.device
    precision: torch.dtype | None

    @property
    def size_multiple(self) -> int:
        """Edges of images must be multiples of this many voxels."""
        return self.network.config.size_multiple

    @overload
    def encode(self, image: Tensor, masks: Tensor | Array) -> list[Tensor]: ...
    @overload
    def encode(self, image: Array, masks: Tensor | Array) -> list[Array]: ...
    def encode(self, image: Tensor | Array, masks: Tensor | Array) -> list[Any]:
        """Task tokens of the classes of one reference; several references are averaged by stage.

        image: (z, y, x) number. masks: (K, z, y, x) bool, or number in [0, 1], on its grid.
        returns: per stage, the deepest first, (K, tokens, width) float32.
        raises UsageError where shapes do not go together or the network cannot read the size,
        DataRefused for voxels that are not finite and masks outside [0, 1].
        """
        voxels, known = self._image(image), self._masks(masks)
        if known.shape[1:] != voxels.shape:
            raise UsageError(
                "image and masks are not on one grid",
                found=f"image {tuple(voxels.shape)}, masks {tuple(known.shape)}",
                expected="image (z, y, x), masks (K, z, y, x)",
            )
        with torch.inference_mode(), compute_in(self.precision, self.device):
            features = self.network.encode_image(voxels[None, None])
            tokens = self.network.encode_task(features, known[None])
        return [_as(image, stage[0]) for stage in tokens]

    @overload
    def decode(self, image: Tensor, tokens: Sequence[Tensor | Array]) -> Tensor: ...
    @overload
    def decode(self, image: Array, tokens: Sequence[Tensor | Array]) -> Array: ...
    def decode(self, image: Tensor | Array, tokens: Sequence[Tensor | Array]) -> Any:
        """Segment a query: all classes in one pass, in which they see each other.

        image: (z, y, x) number. tokens: of `encode`, or their mean over references.
        returns: logits (K, z, y, x) float32; a voxel belongs to the class of the largest one above
        0, and no sigmoid is taken. raises UsageError, DataRefused as `encode`.
        """
        voxels, stages = self._image(image), self._tokens(tokens)
        with torch.inference_mode(), compute_in(self.precision, self.device):
            features = self.network.encode_image(voxels[None, None])
            logits = self.network.decode(features, stages, overwrite=True)
        return _as(image, logits[0].float())

    def _image(self, image: Tensor | Array) -> Tensor:
        voxels = torch.as_tensor(image)
        if voxels.dim() != 3:
            raise UsageError("not one volume", found=tuple(voxels.shape), expected="(z, y, x)")
        return _finite("image", voxels.to(self.device, torch.float32))

    def _masks(self, masks: Tensor | Array) -> Tensor:
        given = torch.as_tensor(masks)
        if given.dim() != 4 or not given.shape[0]:
            raise UsageError("not masks", found=tuple(given.shape), expected="(K, z, y, x)")
        if given.dtype == torch.bool:
            return given.to(self.device)
        known = _finite("masks", given.to(self.device, torch.float32))
        low, high = float(known.min()), float(known.max())
        if low < 0 or high > 1:
            raise DataRefused(
                "masks are not shares of a voxel",
                found=f"values from {low:g} to {high:g}",
                expected="bool, or numbers in [0, 1]; one mask for each class, no label map",
            )
        return known

    def _tokens(self, tokens: Sequence[Tensor | Array]) -> list[Tensor]:
        config = self.network.config
        stages = [torch.as_tensor(stage).to(self.device, torch.float32) for stage in tokens]
        classes = stages[0].shape[0] if stages and stages[0].dim() == 3 else 0
        wanted = [(classes, config.tokens, config.stage_channels(i)) for i in range(config.stages)]
        if not classes or [tuple(stage.shape) for stage in stages] != wanted:
            raise UsageError(
                "these are no tokens of this model",
                found=[tuple(stage.shape) for stage in stages],
                expected=[("K", *shape[1:]) for shape in wanted],
                fix="encode the reference with the same model",
            )
        return [_finite("tokens", stage)[None] for stage in stages]


def load_model(
    name_or_path: str | Path | None = None,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
) -> InContextModel:
    """Load a model for use from Python.

    name_or_path: None for the default, the name of a shipped or registered model, a model folder
    or a `.safetensors` file. device: auto, cpu, cuda or cuda:N. precision: of the computation:
    auto, fp32, bf16 or fp16; auto is bf16 where the device computes in it. Tokens and logits are
    float32 always.
    raises UsageError for words and models that do not exist and for a precision that the device
    would only emulate, EnvironmentProblem for a missing device, DataRefused for a damaged model.
    """
    place = torch.device(choose_device(device))
    kind = autocast_type(choose_precision(precision, place), place)
    model = load(name_or_path, device=place)
    model.network.requires_grad_(False)
    return InContextModel(model.network, model.card, place, kind)


def _finite(what: str, values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise DataRefused(
            f"{what} with values that are not finite numbers",
            found=f"{int((~torch.isfinite(values)).sum())} of {values.numel()}",
            fix="replace them before",
        )
    return values


def _as(like: Tensor | Array, values: Tensor) -> Tensor | Array:
    if isinstance(like, np.ndarray):
        return values.cpu().numpy()
    return values.to(like.device).clone()
