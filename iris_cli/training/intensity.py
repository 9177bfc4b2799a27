"""Intensity changes of one image, by batchgenerators, reproducible per episode.

batchgenerators draws from the global generators of numpy and random; `seeded` sets both from the
episode's own generator and puts the old state back, so that nothing outside is disturbed and
nothing outside disturbs an episode.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from batchgenerators.augmentations.color_augmentations import (
    augment_brightness_additive,
    augment_brightness_multiplicative,
    augment_contrast,
    augment_gamma,
)
from batchgenerators.augmentations.noise_augmentations import (
    augment_gaussian_blur,
    augment_gaussian_noise,
)
from batchgenerators.augmentations.resample_augmentations import augment_linear_downsampling_scipy

from iris_cli.training.settings import IntensitySettings

Image = npt.NDArray[np.float32]


def change_intensity(
    image: Image, rng: np.random.Generator, settings: IntensitySettings, *, strong: bool = False
) -> Image:
    """One image (Z, Y, X) with a random choice of changes; its mean level stays near 0.

    strong: every change is twice as likely (two views of one image).
    """
    steps = (
        (settings.noise_probability, _noise),
        (settings.blur_probability, _blur),
        (settings.brightness_probability, _brightness),
        (settings.contrast_probability, _contrast),
        (settings.low_resolution_probability, _low_resolution),
        (settings.inverted_gamma_probability, _inverted_gamma),
        (settings.gamma_probability, _gamma),
    )
    channels = image[None]
    with seeded(rng):
        for probability, step in steps:
            if np.random.uniform() < min(1.0, probability * (2 if strong else 1)):
                channels = step(channels, settings)
    return np.ascontiguousarray(channels[0], dtype=np.float32)


def remap(images: list[Image], rng: np.random.Generator) -> list[Image]:
    """All images through one random curve, not monotone in one of two cases.

    The curve interpolates a few knots over the joint range (0.5 to 99.5 percentile) and is scaled
    back to the mean and standard deviation that the images had together.
    """
    sample = np.concatenate([image.reshape(-1)[::17] for image in images])
    low, high = np.percentile(sample, [0.5, 99.5])
    if high - low < 1e-3:
        return images
    knots = np.linspace(low, high, int(rng.integers(3, 8)))
    heights = rng.standard_normal(knots.size)
    if rng.random() < 0.5:
        heights = np.cumsum(np.abs(heights)) * rng.choice([-1.0, 1.0])
    new = np.interp(sample, knots, heights)
    gain = sample.std() / max(float(new.std()), 1e-3)
    heights = (heights - new.mean()) * gain + sample.mean()
    return [np.interp(image, knots, heights).astype(np.float32) for image in images]


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Run a block with numpy's and random's global generators seeded from `rng`."""
    seed = int(rng.integers(2**32))
    numpy_state, random_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(random_state)


def _noise(x: Image, s: IntensitySettings) -> Image:
    # What batchgenerators calls variance is handed to numpy as the standard deviation.
    changed: Image = augment_gaussian_noise(x, (0.0, s.noise_sigma))
    return changed


def _blur(x: Image, s: IntensitySettings) -> Image:
    changed: Image = augment_gaussian_blur(
        x, s.blur_sigma, different_sigma_per_axis=True, p_isotropic=0.5
    )
    return changed


def _brightness(x: Image, s: IntensitySettings) -> Image:
    x = augment_brightness_multiplicative(x, s.brightness)
    changed: Image = augment_brightness_additive(x, 0.0, s.shift_sigma)
    return changed


def _contrast(x: Image, s: IntensitySettings) -> Image:
    changed: Image = augment_contrast(x, s.contrast)
    return changed


def _low_resolution(x: Image, s: IntensitySettings) -> Image:
    # Linear on the way back: nearest neighbour (the default) leaves blocks no scanner makes.
    low, high = s.low_resolution
    ranges = ((low, high),) * 3
    changed: Image = augment_linear_downsampling_scipy(x, ranges, order_upsample=1)
    return changed


def _gamma(x: Image, s: IntensitySettings) -> Image:
    changed: Image = augment_gamma(x, s.gamma, retain_stats=True)
    return changed


def _inverted_gamma(x: Image, s: IntensitySettings) -> Image:
    changed: Image = augment_gamma(x, s.gamma, retain_stats=True, invert_image=True)
    return changed
