"""The whole network: encode a reference once into task tokens, decode any number of queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from iris_cli.errors import UsageError
from iris_cli.network.config import NetworkConfig
from iris_cli.network.decoder import Decoder, Head
from iris_cli.network.encoder import ImageEncoder
from iris_cli.network.logit_map import LogitMap
from iris_cli.network.task_encoder import TaskEncoder

Features = tuple[Tensor, ...]
Tokens = list[Tensor]


class IrisNetwork(nn.Module):
    """In-context segmentation: `decode(encode_image(query), encode_task(reference, masks))`.

    `class_valid` (B, K) bool marks the real classes of a padded batch: the others are neither
    encoded nor seen by any class, and what is returned for them is zero. `recompute` trades time
    for memory in training: inner activations are computed again in the backward pass.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        stages = range(config.stages)
        if config.bank_size is not None:
            for stage in stages:
                shape = (config.bank_size, config.tokens, config.stage_channels(stage))
                self.register_buffer(
                    f"task_prior_{stage}", nn.init.xavier_uniform_(torch.empty(shape))
                )
        self.encoder = ImageEncoder(config)
        self.decoder = Decoder(config)
        self.task_embedding = TaskEncoder(config)
        self.out = Head(config)

    def encode_image(self, image: Tensor, *, recompute: bool = False) -> Features:
        """Features of a query or reference, deepest first.

        image: (B, in_channels, Z, Y, X), edges multiples of `config.size_multiple`.
        returns: 5 tensors (B, C_j, Z/s, Y/s, X/s).
        """
        self._check_size(image.shape[2:])
        return self.encoder(image, recompute=recompute)  # type: ignore[no-any-return]

    def encode_task(
        self,
        features: Sequence[Tensor],
        masks: Tensor,
        class_valid: Tensor | None = None,
        *,
        recompute: bool = False,
    ) -> Tokens:
        """Task tokens of every class of a reference.

        features: of `encode_image`. masks: (B, K, Z, Y, X) bool, or number in [0, 1], at the
        resolution of the reference image. class_valid: (B, K) bool.
        returns: per stage (B, K, tokens, C_i) float32.
        """
        limit = self.config.reference_max
        if limit is not None and max(masks.shape[2:]) > limit:
            raise UsageError(
                "this network cannot read references of this size",
                found=tuple(masks.shape[2:]),
                expected=f"at most {limit} voxels along every axis",
                fix="crop the reference",
            )
        if class_valid is None:
            class_valid = torch.ones(masks.shape[:2], dtype=torch.bool, device=masks.device)
        found: Tokens = self.task_embedding(features, masks, class_valid, recompute=recompute)
        return found

    def tokens_from_bank(self, ids: Tensor) -> Tokens:
        """Remembered tokens of classes: ids (B, K) int64 -> per stage (B, K, tokens, C_i)."""
        if self.config.bank_size is None:
            raise UsageError("this network has no memory of classes", fix="encode a reference")
        return [self.get_buffer(f"task_prior_{i}")[ids] for i in range(self.config.stages)]

    def decode(
        self,
        features: Sequence[Tensor],
        tokens: Sequence[Tensor],
        class_valid: Tensor | None = None,
        *,
        recompute: bool = False,
        overwrite: bool = False,
    ) -> Tensor:
        """Segment a query: all classes in one pass, each one seeing the others.

        features: of the query. tokens: per stage (B, K, tokens, C_i). class_valid: (B, K) bool.
        overwrite: the features are not needed any more; in inference their memory is used.
        returns: logits (B, K, Z, Y, X) float32; no sigmoid taken.
        """
        found = self._logit_map(
            features, tokens, class_valid, recompute=recompute, overwrite=overwrite
        )
        logits = found.logits()
        if class_valid is None:
            return logits
        return logits.masked_fill(~class_valid[:, :, None, None, None], 0.0)

    def decode_map(
        self, features: Sequence[Tensor], tokens: Sequence[Tensor], *, overwrite: bool = False
    ) -> LogitMap:
        """`decode`, with the logits not multiplied out: for those who want them part by part."""
        return self._logit_map(features, tokens, None, recompute=False, overwrite=overwrite)

    def _logit_map(
        self,
        features: Sequence[Tensor],
        tokens: Sequence[Tensor],
        class_valid: Tensor | None,
        *,
        recompute: bool,
        overwrite: bool,
    ) -> LogitMap:
        seen = class_valid
        if class_valid is not None:
            # A softmax over no key is not a number in some attention kernels; the logits of such
            # an episode are zeroed anyway.
            seen = class_valid | ~class_valid.any(dim=1, keepdim=True)
        x, posteriors = self.decoder(
            tuple(features), list(tokens), seen, recompute=recompute, overwrite=overwrite
        )
        found: LogitMap = self.out.logit_map(x, posteriors)
        return found

    def _check_size(self, size: torch.Size) -> None:
        multiple = self.config.size_multiple
        if any(n == 0 or n % multiple for n in size) or max(size) == multiple:
            raise UsageError(
                "this network cannot read images of this size",
                found=tuple(size),
                expected=f"multiples of {multiple} voxels, more than one of them along some axis",
                fix="pad the image",
            )
