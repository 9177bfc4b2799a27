"""The other side of `benchmarks.loader`: run by a Python that has nnunetv2, and knows no iris.

    nnUNet_n_proc_DA=0 python nnunet_loader.py PREPROCESSED PATCH PATCHES

Prints CPU seconds of one patch of nnU-Net's training loader with its training transforms, in this
process and with one thread; the first batch is not counted.
"""

import contextlib
import io
import json
import sys
import time
from pathlib import Path

import torch


def main() -> None:
    folder, patch, patches = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"].update(patch_size=[patch] * 3, batch_size=2)
    plans["continue_training"] = False  # its trainer takes this flag out of the plans
    dataset = json.loads((folder / "dataset.json").read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = nnUNetTrainer(plans, "3d_fullres", "all", dataset, torch.device("cpu"))
        trainer.batch_size = 2
        loader, _ = trainer.get_dataloaders()
        next(loader)
        began = time.process_time()
        for _ in range(patches // 2):
            next(loader)
        seconds = time.process_time() - began
    sys.stdout.write(f"{seconds / (patches // 2 * 2)}\n")


if __name__ == "__main__":
    main()
