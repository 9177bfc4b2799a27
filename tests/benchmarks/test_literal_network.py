"""The literal network of the benchmarks is the published one, and ours is its equal."""

from __future__ import annotations

import pytest
import torch

from benchmarks.literal_network import LiteralNetwork
from iris_cli.network.config import NetworkConfig, Stem
from iris_cli.network.iris_network import IrisNetwork
from tests.network.vectors import Vectors, stored

RELEASED_KIND = NetworkConfig.tiny().model_copy(
    update={
        field: getattr(NetworkConfig.released(), field)
        for field in ("position_volume", "class_token", "foreground_norm")
    }
)


def _literal(network: IrisNetwork) -> LiteralNetwork:
    literal = LiteralNetwork(network.config)
    weights = network.state_dict()
    literal.load_state_dict({k: v for k, v in weights.items() if not k.startswith("task_prior")})
    return literal


@pytest.mark.parametrize("name", ["tiny", "small"])
@torch.no_grad()
def test_it_reproduces_the_arrays_of_the_published_network(name: str) -> None:
    vectors: Vectors = stored(name)
    literal = _literal(vectors.network)
    query = literal.encoder(vectors.io["query_image"])
    tokens = literal.encode_task(literal.encoder(vectors.io["ref_image"]), vectors.io["ref_mask"])
    for i, token in enumerate(tokens):
        vectors.check(f"tokens_stage{i}", token)
    vectors.check("logits", literal.decode(query, tokens))


@pytest.mark.parametrize("config", [NetworkConfig.tiny(), RELEASED_KIND], ids=["own", "released"])
def test_logits_and_gradients_are_as_near_to_double_precision_as_ours(
    config: NetworkConfig,
) -> None:
    torch.manual_seed(3)
    ours = IrisNetwork(config)
    literal, exact = _literal(ours), _literal(ours).double()
    query, reference = torch.randn(2, 2, 1, 32, 32, 32)
    masks = torch.rand(2, 3, 32, 32, 32) > 0.7
    features = ours.encode_image(reference)
    found = {
        "ours": ours.decode(ours.encode_image(query), ours.encode_task(features, masks)),
        "literal": literal(query, reference, masks),
        "exact": exact(query.double(), reference.double(), masks),
    }
    slope = torch.randn(found["ours"].shape)
    for logits in found.values():
        (logits * slope).sum().backward()

    torch.testing.assert_close(found["ours"].double(), found["exact"], rtol=1e-4, atol=1e-4)
    size = _norm(_gradient(exact))
    ours_off = _norm(_gradient(ours) - _gradient(exact)) / size
    literal_off = _norm(_gradient(literal) - _gradient(exact)) / size
    assert ours_off < max(3 * literal_off, 1e-5), (ours_off, literal_off)


def _gradient(network: torch.nn.Module) -> torch.Tensor:
    """All gradients in one row, in the order of their names."""
    parameters = dict(network.named_parameters())
    return torch.cat([parameters[n].grad.double().flatten() for n in sorted(parameters)])


def _norm(x: torch.Tensor) -> float:
    return float(x.norm())


def test_a_configuration_without_literal_form_is_refused() -> None:
    with pytest.raises(ValueError, match="no literal form"):
        LiteralNetwork(NetworkConfig(stem=Stem.HALF))
