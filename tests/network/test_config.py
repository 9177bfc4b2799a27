"""The configuration refuses what cannot be built and round-trips through JSON."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from iris_cli.network.config import ForegroundToken, NetworkConfig, Stem
from tests.network.episodes import OPTIONS


@pytest.mark.parametrize("name", OPTIONS)
def test_json_round_trip(name: str) -> None:
    config = OPTIONS[name]
    assert NetworkConfig.model_validate_json(config.model_dump_json()) == config


def test_released_numbers() -> None:
    config = NetworkConfig.released()
    stages = range(3)
    assert [config.stage_channels(i) for i in stages] == [512, 256, 128]
    assert [config.stage_stride(i) for i in stages] == [16, 8, 4]
    assert [config.stage_heads(i) for i in stages] == [16, 8, 4]
    assert (config.tokens, config.size_multiple, config.reference_max) == (11, 16, 128)


def test_own_models_have_no_position_volume_and_half_stem_needs_multiples_of_32() -> None:
    config = NetworkConfig(stem=Stem.HALF)
    assert (config.position_volume, config.reference_max, config.size_multiple) == (False, None, 32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel_sizes": (3, 3, 2, 3, 3)}, "odd"),
        ({"channels": (8, 8, 8, 8, 100)}, "multiple of 32"),
        ({"foreground_token": ForegroundToken.NONE, "context_tokens": False}, "no token"),
        ({"stages": 4}, "stages"),
        ({"blocks": (10**9, 1, 1, 1)}, "blocks"),
        ({"channels": (0, 8, 8, 8, 8)}, "channels"),
        ({"stem": "quarter"}, "stem"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkConfig(**values)  # type: ignore[arg-type]


def test_reading_a_configuration_does_not_load_torch() -> None:
    code = "import sys, iris_cli.network.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
