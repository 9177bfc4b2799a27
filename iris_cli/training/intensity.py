"""Intensity changes of one image, made by the worker, reproducible per episode.

Most are those of batchgenerators, which draws from the global generators of numpy and random;
`seeded` sets both from the episode's own generator and puts the old state back, so that nothing
outside is disturbed and nothing outside disturbs an episode.
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
from batchgenerators.augmentations.noise_augmentations import augment_gaussian_blur

from iris_cli.training.settings import IntensitySettings

Image = npt.NDArray[np.float32]


def change_intensity(
    image: Image,
    fill: float,
    rng: np.random.Generator,
    settings: IntensitySettings,
    *,
    voxel: float = 1.0,
    strong: bool = False,
) -> tuple[Image, float]:
    """One image (Z, Y, X) with a random choice of changes; its mean level stays near 0.

    fill: the value outside of the image; it changes as the image's own values do.
    voxel: voxel edge of the patch in voxels of the image: what blurs is meant in the patch's.
    strong: every change is twice as likely (two views of one image).
    """
    often = 2.0 if strong else 1.0
    with seeded(rng):
        channels = image[None]
        if np.random.uniform() < often * settings.noise_probability:
            channels = _noise(channels, rng, settings)
        if np.random.uniform() < often * settings.blur_probability:
            channels = _blur(channels, settings, voxel)
        # From here on every voxel changes by itself, the one of the fill with the rest.
        outside = np.full((1, 1), fill, np.float32)
        values = np.concatenate([channels.reshape(1, -1), outside], axis=1)
        for probability, step in (
            (settings.brightness_probability, _brightness),
            (settings.contrast_probability, _contrast),
            (settings.inverted_gamma_probability, _inverted_gamma),
            (settings.gamma_probability, _gamma),
        ):
            if np.random.uniform() < often * probability:
                values = step(values, settings)
    changed = np.ascontiguousarray(values[0, :-1], dtype=np.float32)
    return changed.reshape(image.shape), float(values[0, -1])


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


def _noise(x: Image, rng: np.random.Generator, s: IntensitySettings) -> Image:
    # Here and not by batchgenerators: in float32 it is drawn in 0.6 of the time.
    noise = rng.standard_normal(x.shape, dtype=np.float32)
    noise *= np.float32(rng.uniform(0.0, s.noise_sigma))
    noise += x
    return noise


def _blur(x: Image, s: IntensitySettings, voxel: float) -> Image:
    low, high = s.blur_sigma
    changed: Image = augment_gaussian_blur(
        x, (low * voxel, high * voxel), different_sigma_per_axis=True, p_isotropic=0.5
    )
    return changed


def _brightness(x: Image, s: IntensitySettings) -> Image:
    x = augment_brightness_multiplicative(x, s.brightness)
    changed: Image = augment_brightness_additive(x, 0.0, s.shift_sigma)
    return changed


def _contrast(x: Image, s: IntensitySettings) -> Image:
    changed: Image = augment_contrast(x, s.contrast)
    return changed


def _gamma(x: Image, s: IntensitySettings) -> Image:
    changed: Image = augment_gamma(x, s.gamma, retain_stats=True)
    return changed


def _inverted_gamma(x: Image, s: IntensitySettings) -> Image:
    changed: Image = augment_gamma(x, s.gamma, retain_stats=True, invert_image=True)
    return changed
