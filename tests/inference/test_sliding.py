"""The sliding window: padding, batches, progress; its numbers are in test_streaming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from iris_cli.inference.blending import KeptMaps
from iris_cli.inference.sliding import Decoding, OnWindow, Query, SlidingWindow
from iris_cli.inference.windows import Layout, gaussian_weight
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
    layout = Layout.along_longest(image.shape, PATCH)
    weight = torch.from_numpy(gaussian_weight(PATCH))
    return SlidingWindow(
        Decoding(network, tokens, [range(3)], "cpu", precision),
        Query(image, -9.0),
        layout,
        weight,
        KeptMaps(layout, weight, torch.device("cpu")),
        window_batch=window_batch,
        on_window=on_window,
    )


def logits(window: SlidingWindow, rows: slice) -> Tensor:
    with torch.inference_mode():
        window.advance(rows.stop)
        return window.logits(rows, 0, [0, 1, 2], window.total_weight(rows.start, rows.stop))


def test_windows_run_when_a_row_needs_them(network: IrisNetwork, tokens: list[Tensor]) -> None:
    seen: list[tuple[int, int]] = []
    image = noise((70, 33, 32)) / 100
    window = sliding(network, tokens, image, window_batch=4, on_window=lambda *n: seen.append(n))
    # They begin at z 0, 16, 32, 38; two beside each other.
    window.advance(16)
    assert seen == [(2, 8)]
    window.advance(33)
    assert seen == [(2, 8), (4, 8), (6, 8)]
    window.advance(70)
    assert seen[-1] == (8, 8)
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
    sliding(network, tokens, image).advance(1)
    window = seen[0][0, 0].numpy()
    assert (window[:, :, :6] == -9).all()
    assert (window[:, :, 26:] == -9).all()
    np.testing.assert_array_equal(window[:, :, 6:26], image[:32, :32])


def test_windows_of_one_batch_do_not_see_each_other(
    network: IrisNetwork, tokens: list[Tensor]
) -> None:
    image = noise((32, 40, 40)) / 100
    one = logits(sliding(network, tokens, image), slice(0, 32))
    several = logits(sliding(network, tokens, image, window_batch=4), slice(0, 32))
    assert float((one - several).abs().max()) < 1e-3 * float(one.max() - one.min())


def test_half_precision_changes_the_arithmetic_alone(
    network: IrisNetwork, tokens: list[Tensor]
) -> None:
    image = noise((32, 32, 32)) / 100
    single = logits(sliding(network, tokens, image), slice(0, 32))
    half = logits(sliding(network, tokens, image, precision="bf16"), slice(0, 32))
    assert half.dtype == torch.float32
    apart = float((single - half).abs().max()) / float(single.max() - single.min())
    assert 1e-5 < apart < 0.1
