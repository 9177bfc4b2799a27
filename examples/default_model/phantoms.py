"""Write the training phantoms: python phantoms.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

from iris_cli.dataset.phantoms import phantom_name, write_phantom_dataset

SEEDS = range(100, 128)
VALIDATE = range(124, 128)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not (folder / "dataset.json").exists():
        roles = {phantom_name(s): "validate" if s in VALIDATE else "train" for s in SEEDS}
        write_phantom_dataset(folder, SEEDS, roles=roles)
