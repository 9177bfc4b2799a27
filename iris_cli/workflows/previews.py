"""A picture of every case, drawn by the process that segmented it."""

from __future__ import annotations

from iris_cli.execution.overlap import Steps, in_steps
from iris_cli.execution.stages import stage
from iris_cli.inference.job import PredictPayload, claim_preview, predict_case, predictor_of
from iris_cli.inference.outputs import preview_file
from iris_cli.volume.reading import read_image, read_labels


@in_steps
def predict_and_draw(payload: PredictPayload) -> Steps:
    """`predict_case`, and OUT/previews/<case>.png where the case is new or has no picture yet.

    raises as `predict_case`; the label map stays where the picture cannot be drawn.
    """
    result = yield from predict_case.steps(payload)
    path = preview_file(payload.output, payload.case)
    if result.status == "done" or not path.exists():
        with stage("drawing the preview", path):
            claim_preview(payload)
            _draw(payload)
    return result


def _draw(payload: PredictPayload) -> None:
    from iris_cli.report.overlay import Overlay, draw_overlay  # matplotlib takes its time

    image = read_image(payload.query, assume_spacing=payload.assume_spacing)
    assumed = image.native.assumed_spacing_xyz
    draw_overlay(
        preview_file(payload.output, payload.case),
        Overlay(
            title=payload.case,
            image=image.array,
            prediction=read_labels(payload.output, assume_spacing=assumed).array,
            truth=None,
            spacing_zyx=image.grid.spacing_zyx,
            class_names=predictor_of(payload).names,
        ),
    )
