"""Write the model of a finished run as it ships: python export.py RUN TARGET."""

from __future__ import annotations

import sys
from pathlib import Path

from iris_cli.workflows.train import export_model

NAME = "iris-small-3"
LICENCE = (
    "CC BY-SA 4.0 (the share-alike licence of a part of the training data; the code of iris is "
    "Apache-2.0)"
)

if __name__ == "__main__":
    run, target = Path(sys.argv[1]), Path(sys.argv[2])
    export_model(run, name=NAME, licence=LICENCE).rename(target)
