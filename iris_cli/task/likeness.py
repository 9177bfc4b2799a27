"""How far the looks of a class lie from those in the references, by its tokens.

The foreground token of the finest stage is the mean of the features under the mask. Of all tokens
it told wrong masks from right ones best (benchmarks/results/quality_flags.md): the others say where
the class lies in its crop, or are nearly the same for all classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from iris_cli.network.config import ForegroundToken, NetworkConfig

Tokens = Sequence[npt.NDArray[np.floating]]
"""Of one class: (m+1, C) per stage, deepest first."""


def is_told(config: NetworkConfig) -> bool:
    """Whether tokens of such a network can be compared.

    Features that are pooled as they are share a large mean over all voxels, so that the tokens of
    all classes point the same way (profile mass-1).
    """
    return config.foreground_norm and config.foreground_token is not ForegroundToken.NONE


def token_distance(one: Tokens, other: Tokens) -> float:
    """Cosine distance, 0 to 2, of the finest foreground tokens; 1 where one of them is zero."""
    a, b = (np.asarray(tokens[-1][-1], np.float64) for tokens in (one, other))
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(2.0, max(0.0, 1.0 - float(a @ b) / length)) if length else 1.0


def distances_apart(references: Sequence[Tokens]) -> tuple[float, ...]:
    """The distance of each reference from the mean of the others; none of a single one."""
    found = []
    for index, own in enumerate(references if len(references) > 1 else ()):
        others = [*references[:index], *references[index + 1 :]]
        mean = [np.mean(stage, axis=0) for stage in zip(*others, strict=True)]
        found.append(token_distance(own, mean))
    return tuple(found)
