"""Labels cell by cell: the numbers of the whole volume at once, by any means and along any axis."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from iris_cli.errors import IrisError
from iris_cli.inference import streaming
from iris_cli.inference.blending import KeptMaps, RunningSums
from iris_cli.inference.memory import Means
from iris_cli.inference.sliding import Decoding, Query, SlidingWindow, empty_windows
from iris_cli.inference.streaming import How, Segmentation, Wanted, segment
from iris_cli.inference.windows import Layout, Part, gaussian_weight
from iris_cli.network.config import NetworkConfig, Stem
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.logit_map import LogitMap
from iris_cli.volume.grid import Grid
from iris_cli.volume.scores import Box, resample_scores_to_labels
from tests.inference.conftest import noise
from tests.inference.whole_volume import decide, predict_logits

PATCH = (32, 32, 32)
GROUPS = ((0, 1, 2, 3, 4),)
VALUES = (5, 9, 2, 7, 300)
FORMS = ("maps", "sums")


# The half-resolution network reads no smaller windows.
PATCHES = {Stem.FULL: (32, 32, 32), Stem.HALF: (64, 64, 64)}


def make_network(stem: Stem) -> tuple[IrisNetwork, list[Tensor]]:
    torch.manual_seed(0)
    config = NetworkConfig.tiny().model_copy(update={"stem": stem})
    network = IrisNetwork(config).eval()
    stages = range(config.stages)
    tokens = [torch.randn(5, config.tokens, config.stage_channels(stage)) for stage in stages]
    return network, tokens


@pytest.fixture(scope="module", params=[Stem.FULL, Stem.HALF])
def network_and_tokens(request: pytest.FixtureRequest) -> tuple[IrisNetwork, list[Tensor]]:
    return make_network(request.param)


def blended(
    network: IrisNetwork,
    tokens: Sequence[Tensor],
    image: np.ndarray,
    form: str,
    *,
    groups: Sequence[Sequence[int]] = GROUPS,
    fill: float = -3.0,
) -> np.ndarray:
    """All logits, asked for cell by cell in boxes of up to 7 voxels."""
    z, y, x = image.shape
    patch = PATCHES[network.config.stem]
    layout = Layout((z, y, x), patch)
    weight = torch.from_numpy(gaussian_weight(patch))
    positions = [range(len(group)) for group in groups]
    forms: dict[str, type[KeptMaps | RunningSums]] = {"maps": KeptMaps, "sums": RunningSums}
    blend = forms[form](layout, weight, torch.device("cpu"), positions)
    decode = Decoding(network, tokens, groups, "cpu", "fp32")
    found = np.full((sum(map(len, groups)), *image.shape), np.nan, np.float32)
    with torch.inference_mode():
        for cell, logits in SlidingWindow(decode, Query(image, fill), layout, blend).finished():
            for box in boxes(layout.needed(cell), 7):
                for number, group in enumerate(groups):
                    found[(list(group), *box)] = logits(box, number, slice(None)).values.numpy()
    return found


def boxes(box: Part, edge: int) -> Iterator[Part]:
    starts = (range(part.start, part.stop, edge) for part in box)
    for corner in itertools.product(*starts):
        z, y, x = (slice(a, min(a + edge, p.stop)) for a, p in zip(corner, box, strict=True))
        yield z, y, x


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(75, 40, 30), (33, 75, 20), (30, 34, 71), (20, 20, 20)])
def test_blended_logits_are_those_of_the_whole_volume(
    network_and_tokens: tuple[IrisNetwork, list[Tensor]],
    form: str,
    shape: tuple[int, int, int],
) -> None:
    network, tokens = network_and_tokens
    image = noise(shape) / 100
    patch = PATCHES[network.config.stem]
    expected = predict_logits(network, tokens, image, -3.0, patch).numpy()
    found = blended(network, tokens, image, form)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("form", FORMS)
def test_groups_are_decoded_apart(form: str) -> None:
    network, tokens = make_network(Stem.FULL)
    image, groups = noise((40, 33, 20)) / 100, ((0, 3), (1,), (2, 4))
    expected = predict_logits(network, tokens, image, -3.0, PATCH, groups=groups).numpy()
    found = blended(network, tokens, image, form, groups=groups)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected))
    together = predict_logits(network, tokens, image, -3.0, PATCH).numpy()
    assert np.abs(together - expected).max() > 1e-2 * np.ptp(expected)


def run(
    network: IrisNetwork,
    tokens: Sequence[Tensor],
    image: np.ndarray,
    native: Grid | None = None,
    *,
    groups: Sequence[Sequence[int]] = GROUPS,
    keep: Sequence[int] = GROUPS[0],
    fill: float = -3.0,
    how: How = How(),  # noqa: B008
) -> Segmentation:
    z, y, x = image.shape
    working = Grid.from_spacing((z, y, x), (1.5, 1.5, 1.5))
    wanted = Wanted(tokens, groups, keep, [VALUES[index] for index in keep])
    return segment(
        network,
        wanted,
        Query(image, fill),
        working,
        native or working,
        PATCHES[network.config.stem],
        how,
    )


def native_of(shape: tuple[int, int, int], spacing_xyz: tuple[float, float, float]) -> Grid:
    """A grid over the same field of view."""
    working = Grid.from_spacing(shape, (1.5, 1.5, 1.5))
    z, y, x = (round(n * 1.5 / s) for n, s in zip(shape, spacing_xyz[::-1], strict=True))
    affine = np.diag([*spacing_xyz, 1.0])
    affine[:3, 3] = working.centre_mm - affine[:3, :3] @ ((np.array([x, y, z]) - 1) / 2)
    return Grid((z, y, x), affine)


@pytest.mark.parametrize("spacing_xyz", [(1.5, 1.5, 1.5), (0.8, 1.1, 2.9)])
@pytest.mark.parametrize("shape", [(75, 40, 30), (33, 75, 20)])
def test_labels_counts_and_confidence_are_those_of_the_whole_volume(
    network_and_tokens: tuple[IrisNetwork, list[Tensor]],
    shape: tuple[int, int, int],
    spacing_xyz: tuple[float, float, float],
) -> None:
    network, tokens = network_and_tokens
    image = noise(shape) / 100
    native = native_of(shape, spacing_xyz)
    found = run(network, tokens, image, native)
    logits = predict_logits(network, tokens, image, -3.0, PATCHES[network.config.stem])
    working = Grid.from_spacing(shape, (1.5, 1.5, 1.5))
    expected = resample_scores_to_labels(logits, working, native, VALUES)
    assert (found.labels == expected).mean() > 0.9999
    assert found.labels.dtype == expected.dtype
    assert len(np.unique(expected)) > 2
    assert found.voxels == {v: int((found.labels == v).sum()) for v in VALUES}
    assert set(found.confidence) == {v for v, n in found.voxels.items() if n}
    if native.compare(working).value == "equal":
        best = torch.sigmoid(logits.amax(dim=0)).numpy()
        for value, confidence in found.confidence.items():
            assert confidence == pytest.approx(best[expected == value].mean(), rel=1e-3)


def test_kept_classes_are_decided_between_and_the_rest_still_seen() -> None:
    network, tokens = make_network(Stem.FULL)
    image = noise((40, 33, 20)) / 100
    logits = predict_logits(network, tokens, image, -3.0, PATCH)[[4, 1]]
    grid = Grid.from_spacing(image.shape, (1.5, 1.5, 1.5))
    expected = resample_scores_to_labels(logits, grid, grid, [300, 9])
    found = run(network, tokens, image, keep=[4, 1])
    assert (found.labels == expected).mean() > 0.9999
    assert list(found.voxels) == [9, 300]


@pytest.mark.parametrize(
    "means",
    [
        Means(window_batch=3),
        Means(on_host=True),
        Means(block_values=5000),
        Means(block_values=500),
    ],
)
def test_means_change_no_label_but_by_rounding(means: Means) -> None:
    network, tokens = make_network(Stem.FULL)
    shape = (75, 40, 30)
    image, native = noise(shape) / 100, native_of(shape, (0.8, 1.1, 2.9))
    first = run(network, tokens, image, native)
    again = run(network, tokens, image, native, how=How(means=means))
    assert (again.labels == first.labels).mean() > 0.999
    assert again.windows == first.windows


def test_windows_of_one_value_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, tokens = make_network(Stem.FULL)
    image = np.full((100, 33, 32), -3.0, np.float32)
    image[:20] = noise((20, 33, 32)) / 100
    ran: list[int] = []
    plain = Decoding.__call__

    def counted(self: Decoding, crops: np.ndarray) -> object:
        ran.append(len(crops))
        return plain(self, crops)

    monkeypatch.setattr(Decoding, "__call__", counted)
    found = run(network, tokens, image, how=How(means=Means(window_batch=2)))
    assert found.windows.all == 12
    assert found.windows.shared == 12 - sum(ran) == 7
    logits = predict_logits(network, tokens, image, -3.0, PATCH)
    grid = Grid.from_spacing((100, 33, 32), (1.5, 1.5, 1.5))
    expected = resample_scores_to_labels(logits, grid, grid, VALUES)
    assert (found.labels == expected).mean() > 0.9999


def test_empty_windows_are_background_where_asked_for() -> None:
    network, tokens = make_network(Stem.FULL)
    generator = np.random.default_rng(0)
    image = generator.normal(-3, 0.1, (130, 32, 32)).astype(np.float32)
    image[:20] += 3
    layout = Layout(image.shape, PATCH)
    query = Query(image, float(image.min()))
    # Windows begin at 0, 16, 32, ...; within 4 voxels of 20 is still something.
    empty = sorted(layout.start(cell)[0] for cell in empty_windows(query, layout))
    assert empty == [32, 48, 64, 80, 96, 98]
    every = run(network, tokens, image, fill=query.fill)
    fewer = run(network, tokens, image, fill=query.fill, how=How(skip_empty=True))
    assert (every.windows.skipped, fewer.windows.skipped) == (0, 6)
    assert (fewer.labels[48:] == 0).all()
    np.testing.assert_array_equal(fewer.labels[:32], every.labels[:32])
    image[61, 5, 5] = 0
    assert len(empty_windows(query, layout)) < 6


def test_a_query_far_larger_than_the_patch_has_no_seams() -> None:
    """An oracle whose logits are the image: what comes out is the image, at every border."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in (200, 70, 60)), indexing="ij")
    image = np.sin(z / 9) + np.cos(y / 7) + np.sin((x + z) / 11)
    found = run(Oracle(), [torch.ones(1, 1, 1)], image.astype(np.float32), groups=((0,),), keep=[0])
    away = np.abs(image) > 1e-4
    np.testing.assert_array_equal(found.labels[away] > 0, image[away] > 0)


class Oracle(IrisNetwork):
    """The logit of its class is the image."""

    def __init__(self) -> None:
        super().__init__(NetworkConfig.tiny())

    def encode_image(self, image: Tensor, *, recompute: bool = False) -> tuple[Tensor, ...]:
        return (image,)

    def decode_map(
        self, features: Sequence[Tensor], tokens: Sequence[Tensor], *, overwrite: bool = False
    ) -> LogitMap:
        return LogitMap(features[0], tokens[0][:, :, :1], None)


def test_the_smaller_form_of_blending_is_chosen() -> None:
    network, _ = make_network(Stem.FULL)
    layout = Layout((75, 40, 33), PATCH)
    weight = torch.from_numpy(gaussian_weight(PATCH))

    def chosen(classes: int) -> type:
        return type(streaming._blend(network, layout, weight, [range(classes)], How()))

    assert chosen(1) is RunningSums
    assert chosen(104) is KeptMaps
    assert dataclasses.replace(How(), precision="bf16").precision == "bf16"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("precision", "fix"), [("fp16", "--precision fp32"), ("fp32", "model and task")]
)
def test_scores_that_are_no_numbers_are_an_error_and_never_background(
    bad: float, precision: Literal["fp16", "fp32"], fix: str
) -> None:
    image = np.ones((100, 33, 20), np.float32)
    image[90, 30, 3] = bad  # the oracle's logits are the image
    with pytest.raises(IrisError, match=f"not finite in precision {precision}") as refused:
        run(
            Oracle(),
            [torch.ones(1, 1, 1)],
            image,
            groups=((0,),),
            keep=[0],
            how=How(precision=precision),
        )
    assert fix in str(refused.value.fix)


@pytest.mark.parametrize("classes", [1, 5])
def test_slices_further_apart_than_a_window_is_deep(classes: int) -> None:
    """One class is blended by sums, five by maps."""
    network, tokens = make_network(Stem.FULL)
    image = noise((400, 20, 20)) / 100
    working = Grid.from_spacing(image.shape, (1.5, 1.5, 1.5))
    native = native_of(image.shape, (1.5, 1.5, 150.0))
    keep, groups = list(range(classes)), (tuple(range(classes)),)
    few = [stage[:classes] for stage in tokens]
    found = run(network, few, image, native, groups=groups, keep=keep)
    logits = predict_logits(network, few, image, -3.0, PATCH)
    expected = resample_scores_to_labels(logits, working, native, VALUES[:classes])
    assert native.shape_zyx[0] == 4
    assert expected.any()
    assert (found.labels == expected).mean() > 0.999


def test_of_a_window_that_waits_the_parts_of_finished_cells_are_gone() -> None:
    layout = Layout((64, 80, 80), PATCH)
    weight = torch.from_numpy(gaussian_weight(PATCH))
    blend = KeptMaps(layout, weight, torch.device("cpu"), [[0]])
    most = 0
    for cell in layout.cells():
        features = torch.zeros(1, 2, *PATCH)
        blend.add(cell, [LogitMap(features, torch.zeros(1, 1, 1, 2), None)])
        kept = itertools.chain.from_iterable(blend._waiting.values())
        most = max(most, sum(one.maps[0].features.untyped_storage().nbytes() for one in kept))
        blend.finish(cell)
    assert most == 2 * 4 * layout.waiting()[0]
    assert not blend._waiting


def test_logits_are_told_everywhere_and_change_nothing() -> None:
    network, tokens = make_network(Stem.FULL)
    shape = (40, 33, 20)
    image, native = noise(shape) / 100, native_of(shape, (0.8, 1.1, 2.9))
    told = {value: np.full(native.shape_zyx, np.nan, np.float32) for value in VALUES}

    def tell(box: Box, value: int, logits: Tensor) -> None:
        assert np.isnan(told[value][box]).all()
        told[value][box] = logits.numpy()

    found = run(network, tokens, image, native, how=How(on_scores=tell))
    stacked = np.stack([told[value] for value in VALUES])
    assert np.isfinite(stacked).all()
    silent = run(network, tokens, image, native)
    for one in (found, silent):
        assert (one.labels == decide(stacked, VALUES)).mean() > 0.9999
    assert found.voxels == pytest.approx(silent.voxels, rel=1e-3)


def test_a_label_does_not_depend_on_how_classes_are_grouped_for_the_work() -> None:
    """Equal logits go to the lower label, within a group and between two."""
    image = np.abs(noise((40, 33, 20))) + 1
    ones = torch.ones(3, 1, 1)
    for groups in (((0, 1, 2),), ((0, 2), (1,)), ((2,), (1,), (0,))):
        for values in ((3, 1, 2), (1, 2, 3), (2, 3, 1)):
            grid = Grid.from_spacing(image.shape, (1.5, 1.5, 1.5))
            wanted = Wanted([ones], groups, (0, 1, 2), values)
            found = segment(Oracle(), wanted, Query(image, 0.0), grid, grid, PATCH, How())
            assert (found.labels == 1).all()
