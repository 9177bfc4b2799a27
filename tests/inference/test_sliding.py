"""The sliding window: padding, batches, progress; its numbers are in test_streaming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from iris_cli.inference.blending import KeptMaps
from iris_cli.inference.sliding import Decoding, OnWindow, Query, SlidingWindow
from iris_cli.inference.windows import Layout, Part, gaussian_weight
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from tests.inference.conftest import noise

PATCH = (32, 32, 32)


@pytest.fixture(scope="module")
def network() -> IrisNetwork:
    torch.manual_seed(0)
    return IrisNetwork(NetworkConfig.tiny()).eval()


@pytest.fixture(scope="module")
def tokens(network: IrisNetwork) -> list[Tensor]:
    torch.manual_seed(1)
    config = network.config
    return [
        torch.randn(3, config.tokens, config.stage_channels(stage))
        for stage in range(config.stages)
    ]


def sliding(
    network: IrisNetwork,
    tokens: list[Tensor],
    image: np.ndarray,
    *,
    window_batch: int = 1,
    precision: str = "fp32",
    on_window: OnWindow | None = None,
) -> SlidingWindow:
    layout = Layout(image.shape, PATCH)
    weight = torch.from_numpy(gaussian_weight(PATCH))
    return SlidingWindow(
        Decoding(network, tokens, [range(3)], "cpu", precision),
        Query(image, -9.0),
        layout,
        KeptMaps(layout, weight, torch.device("cpu"), [range(3)]),
        window_batch=window_batch,
        on_window=on_window,
    )


def logits(window: SlidingWindow, box: Part) -> Tensor:
    """Of the first cell."""
    with torch.inference_mode():
        _, found = next(window.finished())
        return found(box, 0, slice(None)).values


def test_windows_run_when_their_cell_is_asked_for(
    network: IrisNetwork, tokens: list[Tensor]
) -> None:
    seen: list[tuple[int, int]] = []
    image = noise((70, 33, 32)) / 100
    window = sliding(network, tokens, image, window_batch=3, on_window=lambda *n: seen.append(n))
    finished = window.finished()
    cells = [next(finished)[0] for _ in range(3)]
    assert seen == [(3, 8)]
    cells += [cell for cell, _ in finished]
    assert seen == [(3, 8), (6, 8), (8, 8)]
    assert cells == Layout(image.shape, PATCH).cells()
    assert window.shared == 0


def test_padding_takes_the_fill(
    network: IrisNetwork, tokens: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    encode = network.encode_image

    def watched(image: Tensor) -> tuple[Tensor, ...]:
        seen.append(image)
        return encode(image)

    monkeypatch.setattr(network, "encode_image", watched)
    image = noise((40, 33, 20))
    next(sliding(network, tokens, image).finished())
    window = seen[0][0, 0].numpy()
    assert (window[:, :, :6] == -9).all()
    assert (window[:, :, 26:] == -9).all()
    np.testing.assert_array_equal(window[:, :, 6:26], image[:32, :32])


def test_windows_of_one_batch_do_not_see_each_other(
    network: IrisNetwork, tokens: list[Tensor]
) -> None:
    image = noise((32, 40, 40)) / 100
    box = (slice(0, 32), slice(0, 8), slice(0, 8))
    one = logits(sliding(network, tokens, image), box)
    several = logits(sliding(network, tokens, image, window_batch=4), box)
    assert float((one - several).abs().max()) < 1e-3 * float(one.max() - one.min())


def test_half_precision_changes_the_arithmetic_alone(
    network: IrisNetwork, tokens: list[Tensor]
) -> None:
    image = noise((32, 32, 32)) / 100
    box = (slice(0, 32),) * 3
    single = logits(sliding(network, tokens, image), box)
    half = logits(sliding(network, tokens, image, precision="bf16"), box)
    assert half.dtype == torch.float32
    apart = float((single - half).abs().max()) / float(single.max() - single.min())
    assert 1e-5 < apart < 0.1
