"""The memory bank: what training remembers of every class, for tasks without references.

For each `<set>/<class>` the tokens of its training references are averaged over the episodes that
asked for it (NETWORK.md 3.7, METHOD.md 6). Only annotated classes of sets whose labels mean the
same from one image to the next have a key: no union, nothing made up, nothing held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from iris_cli.network.config import NetworkConfig
from iris_cli.training.episodes import Episode


@dataclass(frozen=True)
class Sighting:
    """What one episode says about one class.

    episode: index g of the episode; row: of the class in it. key: `<set>/<class>`.
    tokens: per stage (m + 1, C_i) float32 on the CPU, the mean over the references that show it.
    """

    episode: int
    row: int
    key: str
    tokens: tuple[torch.Tensor, ...]


def sightings(episodes: Sequence[Episode], tokens: Sequence[torch.Tensor]) -> list[Sighting]:
    """What a part of a batch says about classes of the bank.

    tokens: per stage (B, K, m + 1, C_i), as the episodes were decoded with them; K may be padded.
    A class that no reference of its episode shows is left out.
    """
    found = []
    stages = [stage.detach().float().cpu() for stage in tokens]
    for b, episode in enumerate(episodes):
        shown = episode.reference_valid.any(dim=0).tolist()
        for k, (key, seen) in enumerate(zip(episode.keys, shown, strict=True)):
            if key is not None and seen:
                rows = tuple(stage[b, k].clone() for stage in stages)
                found.append(Sighting(episode.index, k, key, rows))
    return found


class MemoryBank:
    """Exponential moving averages of tokens by key, on the CPU in float32.

    METHOD.md 6 averages with a decay of 0.999 per sighting, which never starts anywhere: after 1000
    sightings a constant decay would still hold 37 % of what the first, random weights said, and
    many classes are not seen so often. So the decay of the n-th sighting (n = 0 at the first) is
    min(decay, n / (9 + n)): the first is taken whole, and from then on what is averaged is on
    average a tenth of the sightings old, until at n = 9 decay / (1 - decay), 8991 for 0.999, the
    decay of the plan takes over. Own choice: the usual warm-up of moving averages,
    (1 + n) / (10 + n), begun one sighting earlier.
    """

    def __init__(self, config: NetworkConfig, decay: float) -> None:
        self.decay = decay
        self._shapes = [(config.tokens, config.stage_channels(i)) for i in range(config.stages)]
        self._tokens: dict[str, tuple[torch.Tensor, ...]] = {}
        self._counts: dict[str, int] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        """Key -> number of episodes that fed it, in the order of names."""
        return {key: self._counts[key] for key in sorted(self._counts)}

    def update(self, seen: Iterable[Sighting]) -> None:
        """Take in everything that was seen in one step, of all its parts and ranks.

        The order in which it comes does not matter: averages are moved in the order of episodes,
        then of their classes, so several ranks come to what one process comes to. To be called
        once for each step that changed the weights: a step that was skipped leaves nothing.
        """
        for item in sorted(seen, key=lambda item: (item.episode, item.row)):
            count = self._counts.get(item.key, 0)
            if count == 0:
                self._tokens[item.key] = tuple(torch.zeros(shape) for shape in self._shapes)
            decay = min(self.decay, count / (9 + count))
            for average, tokens in zip(self._tokens[item.key], item.tokens, strict=True):
                average.lerp_(tokens, 1 - decay)
            self._counts[item.key] = count + 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: names, counts, and per stage (N, m + 1, C_i) float32."""
        names = sorted(self._counts)
        return {
            "names": names,
            "counts": [self._counts[name] for name in names],
            "tokens": [
                torch.stack([self._tokens[name][i] for name in names])
                if names
                else torch.zeros((0, *shape))
                for i, shape in enumerate(self._shapes)
            ],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        names = state["names"]
        self._counts = dict(zip(names, state["counts"], strict=True))
        self._tokens = {
            name: tuple(stage[i].clone() for stage in state["tokens"])
            for i, name in enumerate(names)
        }
