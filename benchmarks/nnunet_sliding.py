"""The other side of `benchmarks.sliding_window`: run by a Python that has nnunetv2, and knows no
iris.

    python nnunet_sliding.py NATIVE SPACING CLASSES PATCH

Sliding window and export of one noise image as nnU-Net's predictor does both, without mirroring, in
this process and with one thread. Prints JSON: CPU seconds of the parts, bytes of memory before and
at most, GFLOP of one window.
"""

import contextlib
import io
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

FEATURES = (4, 8, 8, 16, 16)


class Timed(nn.Module):
    """A network that knows how long it took."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, image: Tensor) -> Tensor:
        began = time.process_time()
        found = self.network(image)
        self.seconds += time.process_time() - began
        return found


def main() -> None:
    edge, spacing = int(sys.argv[1]), float(sys.argv[2])
    classes, patch = int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    from nnunetv2.inference import export_prediction
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    plans, dataset = make_plans(spacing, classes, patch)
    network = Timed(make_network(classes + 1)).eval()
    count = FlopCounterMode(display=False)
    with count, torch.no_grad():
        network.network(torch.zeros(1, 1, 32, 32, 32))
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(
            use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
        )
        configuration = plans.get_configuration("3d_fullres")
        predictor.manual_initialization(network, plans, configuration, None, dataset, "", None)
        before = memory_now("VmRSS")
        image = torch.randn(1, *[round(edge / spacing)] * 3)
        began = time.process_time()
        logits = predictor.predict_sliding_window_return_logits(image)
        swept = time.process_time()
        export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans, configuration, predictor.label_manager, properties(edge),
            num_threads_torch=1,
        )  # fmt: skip
    parts = {
        "network": network.seconds,
        "accumulate": swept - began - network.seconds,
        "export": time.process_time() - swept,
    }
    memory = {"before": before, "most": memory_now("VmHWM")}
    flops = count.get_total_flops() / 1e9 * (patch / 32) ** 3
    sys.stdout.write(json.dumps({**parts, **memory, "gflop": flops}) + "\n")


def make_network(heads: int) -> nn.Module:
    """nnU-Net's plain U-Net with as many operations as the tiny network of iris."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        1, len(FEATURES), FEATURES, nn.Conv3d, 3, [1] + [2] * (len(FEATURES) - 1), 2, heads, 2,
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip


def make_plans(spacing: float, classes: int, patch: int) -> tuple:
    """As its planner would write them, as far as prediction asks."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {},
        "_kw_requires_import": [],
    }
    order = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "patch_size": [patch] * 3,
        "spacing": [spacing] * 3,
        "architecture": architecture,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": order,
    }
    plans = {
        "dataset_name": "Dataset999_Noise",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
    }
    labels = {"background": 0, **{f"c{i}": i for i in range(1, classes + 1)}}
    return PlansManager(plans), {"labels": labels, "channel_names": {"0": "CT"}}


def properties(edge: int) -> dict:
    """Of an image of 1 mm that was not cropped."""
    return {
        "spacing": [1.0, 1.0, 1.0],
        "shape_before_cropping": [edge] * 3,
        "shape_after_cropping_and_before_resampling": [edge] * 3,
        "bbox_used_for_cropping": [[0, edge]] * 3,
    }


def memory_now(what: str) -> int:
    """Bytes of this process: VmRSS is what it holds, VmHWM the most it ever held (Linux)."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{what}:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
