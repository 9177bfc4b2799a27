"""What a network is made of: one frozen record, enough to build it and to check weights.

The defaults are those of iris' own models (no position volume); `NetworkConfig.released()` is
the network of the public weights.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator

from iris_cli.files.schema import Record

# Upper limits so that a card of unknown origin cannot ask for an endless construction.
Width = Annotated[int, Field(gt=0, le=4096)]
Count = Annotated[int, Field(gt=0, le=16)]
Tokens = Annotated[int, Field(gt=0, le=4096)]
HEAD_WIDTH = 32
POSITION_VOLUME_SIZE = 128

ADDED_FIELDS: dict[str, Any] = {}
"""Fields that `NetworkConfig` got after models were published -> the JSON value they must have
for such a model to compute what it computed before.

The rule for a new field: enter it here with that value, whatever its default is. A card without
it then means this value (every other field must be stated), and a network with this value keeps
its fingerprint. Entries are never changed or removed."""


class Stem(StrEnum):
    """At which resolution the network works."""

    FULL = "full"
    HALF = "half"
    """2 x 2 x 2 voxels become 8 input channels; only the logits come back to full resolution."""


class ForegroundToken(StrEnum):
    """How the features under a mask become the last token of its class."""

    FULL = "full"
    """Features up-sampled to the mask: small objects keep their own token."""
    NONE = "none"
    NEAREST = "nearest"
    """Mask read at the centres of the coarse cells: small objects vanish."""
    AREA = "area"
    """Mask averaged over the coarse cells."""


class ClassToken(StrEnum):
    """From which of its tokens a class' classifier is made, after the decoder's exchange."""

    FIRST = "first"
    """As the released code: a context query, which starts equal for all classes. Training from
    scratch then stays for long at one answer for every class."""
    LAST = "last"
    """The foreground token, where there is one: it differs between classes from the first step."""


class NetworkConfig(Record):
    """Sizes and switches of an `IrisNetwork`.

    channels: c0..c4, width at stride 1, 2, 4, 8, 16.
    blocks: residual blocks of level 1..4, in the encoder and on the way up alike.
    kernel_sizes, scales: odd kernel per level 0..4, pooling factor of level 1..4.
    stages: number of token stages, from the deepest up. queries: context tokens m per class.
    foreground_norm: pool features after InstanceNorm. The encoder's raw sums share a large mean
    over all voxels, in which the difference between two classes drowns: without this option and
    `ClassToken.LAST` training from scratch stays at one answer for every class.
    bank_size: number of classes of the token memory, None for no memory.
    """

    channels: tuple[Width, Width, Width, Width, Width] = (16, 32, 64, 96, 128)
    blocks: tuple[Count, Count, Count, Count] = (2, 2, 2, 2)
    kernel_sizes: tuple[Count, Count, Count, Count, Count] = (3, 3, 3, 3, 3)
    scales: tuple[Count, Count, Count, Count] = (2, 2, 2, 2)
    in_channels: Count = 1
    stages: Annotated[int, Field(ge=1, le=3)] = 3
    queries: Tokens = 10
    stem: Stem = Stem.FULL
    position_volume: bool = False
    foreground_token: ForegroundToken = ForegroundToken.FULL
    context_tokens: bool = True
    class_token: ClassToken = ClassToken.LAST
    foreground_norm: bool = True
    bank_size: Tokens | None = None

    @model_validator(mode="after")
    def _can_be_built(self) -> NetworkConfig:
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd, found {self.kernel_sizes}")
        for stage in range(self.stages):
            if self.stage_channels(stage) % self.stage_heads(stage):
                raise ValueError(
                    f"{self.stage_channels(stage)} channels cannot be split into "
                    f"{self.stage_heads(stage)} attention heads: use a multiple of {HEAD_WIDTH}"
                )
        if self.tokens == 0:
            raise ValueError("foreground_token none and context_tokens off leave no token")
        return self

    @classmethod
    def released(cls, bank_size: int | None = 73) -> NetworkConfig:
        """The network of the public weights `mass_base.pth`."""
        return cls(
            channels=(32, 64, 128, 256, 512),
            position_volume=True,
            class_token=ClassToken.FIRST,
            foreground_norm=False,
            bank_size=bank_size,
        )

    @classmethod
    def tiny(cls) -> NetworkConfig:
        """The smallest sensible network, for tests: patches of 32 voxels, milliseconds."""
        return cls(channels=(4, 8, 8, 16, 16), blocks=(1, 1, 1, 1), queries=2)

    @property
    def tokens(self) -> int:
        """Tokens of one class at one stage (m + 1 with everything on)."""
        context = self.queries if self.context_tokens else 0
        return context + (self.foreground_token is not ForegroundToken.NONE)

    @property
    def class_row(self) -> int:
        """Index of the token that becomes a class' posterior."""
        return 0 if self.class_token is ClassToken.FIRST else -1

    @property
    def fold(self) -> int:
        """Edge of the voxel block that becomes one voxel of the network."""
        return 2 if self.stem is Stem.HALF else 1

    @property
    def size_multiple(self) -> int:
        """Edges of queries and references must be multiples of this many voxels."""
        return self.fold * math.prod(self.scales)

    @property
    def reference_max(self) -> int | None:
        """Longest edge of a reference in voxels; None without a position volume."""
        return POSITION_VOLUME_SIZE if self.position_volume else None

    def stage_channels(self, stage: int) -> int:
        """Width C_i of stage i (0 = deepest)."""
        return self.channels[4 - stage]

    def stage_stride(self, stage: int) -> int:
        """Stride s_i of stage i, in voxels of the network (after the stem's fold)."""
        return math.prod(self.scales[: 4 - stage])

    def stage_heads(self, stage: int) -> int:
        """Attention heads of stage i."""
        return max(1, self.stage_channels(stage) // HEAD_WIDTH)
