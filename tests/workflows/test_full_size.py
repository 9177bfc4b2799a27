"""The network of the released weights at full size, from the file to the logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.literal_network import LiteralNetwork
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.workflows import load_model
from iris_cli.workflows.models import import_model
from tests.model.released_files import config_of, weights_of, write

CONFIG = NetworkConfig.released()
QUERY, REFERENCE, CLASSES = 128, 64, 3
RANGE = 10.0
# Two right fp32 forms differ by this much in the worst of 6 million logits: random weights enlarge
# the rounding of the query's features on the way down, and the definition in fp32 is itself 2.4e-4
# off the definition in double precision.
TOLERANCE = 6e-4
LAST_LAYER = "out.classifier_pred.1.fc2"


def _masks() -> Tensor:
    masks = torch.zeros(CLASSES, *[REFERENCE] * 3, dtype=torch.bool)
    masks[0, 5:40, 20:50, 10:30] = True
    masks[1, 33:37, 30:33, 30:34] = True
    masks[2, :, 40:, :] = True
    return masks


def _literal(weights: dict[str, Tensor]) -> LiteralNetwork:
    literal = LiteralNetwork(CONFIG).eval()
    literal.load_state_dict({k: v for k, v in weights.items() if not k.startswith("task_prior")})
    return literal


@pytest.mark.slow
@torch.no_grad()
def test_an_imported_random_network_gives_the_logits_of_the_definition(tmp_path: Path) -> None:
    weights = weights_of(CONFIG)
    generator = torch.Generator().manual_seed(1)
    query, reference = (torch.randn([edge] * 3, generator=generator) for edge in (QUERY, REFERENCE))
    masks = _masks()
    expected = _literal(weights)(query[None, None], reference[None, None], masks[None])[0]
    # The head's last layer is linear: a power of two scales the logits and rounds nothing.
    scale = 2.0 ** round(float(torch.log2(RANGE / expected.abs().max())))
    expected *= scale
    for name in ("weight", "bias"):
        weights[f"{LAST_LAYER}.{name}"] *= scale
    path = write(tmp_path / "mass_base.pth", {"ema_model": weights, "config": config_of(CONFIG)})
    report = import_model(path, "random-full-size", registry=tmp_path / "registry")
    model = load_model(report.folder, device="cpu", precision="fp32")
    logits = model.decode(query, model.encode(reference, masks))
    assert 0.7 * RANGE < expected.abs().max() < 1.5 * RANGE
    error = (logits - expected).abs()
    assert error.max() < TOLERANCE
    assert error.square().mean().sqrt() < TOLERANCE / 6
    assert ((logits >= 0) == (expected >= 0)).float().mean() > 0.9999
    assert (logits.argmax(0) == expected.argmax(0)).float().mean() > 0.9999


@pytest.mark.slow
@torch.no_grad()
def test_inference_rounds_as_little_as_the_definition() -> None:
    """Both in fp32, against the definition in double precision."""
    weights, (z, y, x) = weights_of(CONFIG), (48, 32, 32)
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 1, z, y, x, generator=generator)
    tokens = [
        torch.randn(1, CLASSES, CONFIG.tokens, CONFIG.stage_channels(i), generator=generator)
        for i in range(CONFIG.stages)
    ]
    network = IrisNetwork(CONFIG).eval()
    network.load_state_dict(weights)
    found = network.decode(network.encode_image(query), tokens)
    literal = _literal(weights)
    usual = literal.decode(literal.encoder(query), tokens)
    literal.double()
    exact = literal.decode(literal.encoder(query.double()), [stage.double() for stage in tokens])
    mine, theirs = ((logits - exact).abs() for logits in (found, usual))
    assert mine.max() < 1.5 * theirs.max()
    assert mine.square().mean() < 1.5**2 * theirs.square().mean()
