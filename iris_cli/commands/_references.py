"""References and classes on the command line, as `encode-task` and `predict` take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iris_cli.errors import UsageError

if TYPE_CHECKING:
    from iris_cli.workflows.encode_task import ReferenceSource

Images = Annotated[
    list[Path] | None,
    typer.Option("--image", help="Image of a reference; give --label for each, in the same order."),
]
LabelMaps = Annotated[list[Path] | None, typer.Option("--label", help="Label map of a reference.")]
LabelsFile = Annotated[Path | None, typer.Option("--labels", help="JSON file {name: value}.")]
Cases = Annotated[
    str | None, typer.Option("--cases", help="Names of reference cases to use, comma-separated.")
]
Classes = Annotated[
    str | None, typer.Option("--classes", help="Names of classes to keep, comma-separated.")
]


def reference_source(
    folder: Path | None,
    images: Sequence[Path] | None,
    labels: Sequence[Path] | None,
    names: Sequence[str],
    labels_file: Path | None,
    cases: str | None,
) -> ReferenceSource:
    """The references a command line names; raises UsageError where --image and --label differ."""
    from iris_cli.workflows.encode_task import ReferenceSource

    images, labels = images or (), labels or ()
    if len(images) != len(labels):
        raise UsageError(
            "every --image needs its --label",
            found=f"{len(images)} images, {len(labels)} label maps",
            fix="give --image A --label B once for each reference",
        )
    return ReferenceSource(
        folder,
        pairs=tuple(zip(images, labels, strict=True)),
        names=tuple(names),
        labels_file=labels_file,
        cases=None if cases is None else tuple(comma_separated(cases)),
    )


def comma_separated(text: str) -> list[str]:
    """Words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
