"""Weights of the released size on a real CT, from the file of weights to the label map."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from iris_cli.network.config import NetworkConfig
from tests.commands.conftest import Iris
from tests.model.released_files import config_of, weights_of, write


@pytest.mark.real
@pytest.mark.slow
def test_a_real_ct_from_import_to_label_map(
    iris: Iris, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are random, so what is labelled means nothing; where it lies does."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    network = NetworkConfig.released()
    source = write(
        tmp_path / "mass_base.pth",
        {"ema_model": weights_of(network), "config": config_of(network)},
    )
    imported = iris("model", "import", source, "--name", "mass-base")
    assert imported.code == 0, imported.err
    assert "120,126,373 parameters, profile mass-1" in imported.out
    assert "memory of classes is left out" in imported.err
    source.unlink()

    image = shared_data / "spleen" / "images" / "spleen_2.nii.gz"
    labels = shared_data / "spleen" / "labels" / "spleen_2.nii.gz"
    task, output = tmp_path / "spleen.task.pt", tmp_path / "out"
    encoded = iris(
        "encode-task", "--image", image, "--label", labels, "spleen=1",
        "--model", "mass-base", "-o", task,
    )  # fmt: skip
    assert encoded.code == 0, encoded.err
    predicted = iris("predict", "-t", task, "-i", image, "-o", output, "--model", "mass-base")
    assert predicted.code == 0, predicted.err

    query, written = nibabel.load(image), nibabel.load(output / "spleen_2.nii.gz")
    assert written.shape == query.shape
    np.testing.assert_array_equal(written.affine, query.affine)
    found = np.asarray(written.dataobj)
    assert set(np.unique(found)) <= {0, 1}

    receipt = json.loads((output / ".iris" / "spleen_2.json").read_text())
    assert receipt["content"]["windows"]["all"] == 1
    assert receipt["content"]["flags"] == ["modality guessed from the voxels: ct"]
    assert receipt["content"]["output"]["voxels"] == {"spleen": int((found == 1).sum())}
    assert receipt["content"]["inputs"]["parameters"]["precision"] == "fp32"
    assert receipt["run"]["seconds"] > 0
    assert receipt["run"]["peak_memory_mb"] > 480  # the weights alone
