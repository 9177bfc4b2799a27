"""The state of a run: everything a checkpoint holds, and going on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from iris_cli.errors import DataRefused
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.training.bank import MemoryBank
from iris_cli.training.checkpoint import State, read_checkpoint, write_best, write_checkpoint
from iris_cli.training.finetune import freeze, load_weights
from iris_cli.training.optimiser import AveragedWeights, build_optimiser
from iris_cli.training.settings import TrainingSettings


@dataclass
class Progress:
    """The counters of a run.

    step: finished steps, of which `skipped` changed no weight. seconds: spent in steps.
    validated_step, validated_seconds: both at the last finished validation.
    best_score, best_step: of the best validation, if `chooses_best` says that scores compare.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    validated_step: int = 0
    validated_seconds: float = 0.0
    best_score: float | None = None
    best_step: int | None = None
    chooses_best: bool = False


class Run:
    """Network, averaged weights, memory bank, optimiser and counters of the run in a folder.

    Nothing random is left in a run once its weights are drawn: every draw of an episode comes from
    (seed, g). The state of torch's generator is kept all the same, and is equal in every rank.
    """

    def __init__(
        self,
        folder: Path,
        network_config: NetworkConfig,
        settings: TrainingSettings,
        fingerprints: Mapping[str, str],
        device: torch.device,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.folder, self.settings, self.device = folder, settings, device
        self.network_config = network_config
        self.fingerprints = dict(fingerprints)
        self.network = IrisNetwork(network_config).to(device)
        self.average = AveragedWeights(self.network, settings.ema)
        freeze(self.network, settings.freeze)
        self.learning = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = build_optimiser(self.learning, settings.optimiser)
        self.bank = MemoryBank(network_config, settings.bank_ema)
        self.progress = Progress()

    def go_on_from(self, path: Path) -> None:
        """Take everything from a checkpoint; refused where plan or data are not those of it."""
        state = read_checkpoint(path)
        for name, ours in self.fingerprints.items():
            if state[name] != ours:
                raise DataRefused(
                    f"this run was made with another {name}",
                    file=path,
                    found=f"{name} {state[name][:12]} in the checkpoint",
                    expected=f"{ours[:12]}",
                    fix="train into another folder, or give the run what it was begun with",
                )
        self.network.load_state_dict(state["model"])
        self.average.state = {k: v.to(self.device) for k, v in state["ema"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        self.bank.load_state(state["bank"])
        torch.set_rng_state(state["rng"])
        # Earlier versions did not note when they validated: their checkpoints owe no validation.
        noted = {"validated_step": state["step"], "validated_seconds": state["seconds"], **state}
        counters = set(vars(self.progress)) - {"chooses_best"}
        self.progress = Progress(**{name: noted[name] for name in counters})

    def start_from(self, path: Path) -> None:
        """Take the weights of a checkpoint (the averaged ones) or of a model."""
        load_weights(self.network, path)
        self.average = AveragedWeights(self.network, self.settings.ema)

    def save(self) -> bool:
        """Write a checkpoint, unless a weight is not finite: the last good generation stays.

        A skipped step touches no weight, so what it leaves is as good as what it found.
        """
        tensors = (*self.network.state_dict().values(), *self.average.state.values())
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
        if finite:
            write_checkpoint(self.folder, self._state())
        return finite

    def save_best(self, score: float) -> None:
        """Keep the averaged weights as those that validated best."""
        self.progress.best_score, self.progress.best_step = score, self.progress.step
        write_best(
            self.folder,
            {
                "ema": self.average.state,
                "bank": self.bank.state(),
                "network": self.network_config.model_dump(mode="json"),
                "step": self.progress.step,
                "score": score,
                **self.fingerprints,
            },
        )

    def weights_hash(self) -> str:
        """SHA-256 of weights and averaged weights."""
        digest = hashlib.sha256()
        for state in (self.network.state_dict(), self.average.state):
            for name, tensor in sorted(state.items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def averaged_network(self) -> IrisNetwork:
        """A network of its own with the averaged weights, for validation."""
        with torch.random.fork_rng(devices=[]):
            network = IrisNetwork(self.network_config).to(self.device)
        network.load_state_dict(self.average.state)
        return network.eval().requires_grad_(False)

    def _state(self) -> State:
        return {
            "model": self.network.state_dict(),
            "ema": self.average.state,
            "bank": self.bank.state(),
            "optimiser": self.optimiser.state_dict(),
            "rng": torch.get_rng_state(),
            "network": self.network_config.model_dump(mode="json"),
            **vars(self.progress),
            **self.fingerprints,
        }
