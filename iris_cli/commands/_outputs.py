"""Options of what `iris predict` writes beside the label maps, and how it takes parts away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from iris_cli.errors import UsageError

if TYPE_CHECKING:
    from iris_cli.inference.outputs import Outputs

Format = Annotated[str, typer.Option("--format", help="Of the volumes: nii.gz, nrrd or mha.")]
Probabilities = Annotated[
    str | None,
    typer.Option(
        "--probabilities",
        metavar="TYPE",
        help="Write one file of probabilities per class, too: uint8 (255 is 1) or float16.",
    ),
]
Previews = Annotated[
    bool, typer.Option("--previews", help="Draw a picture of every case, in three planes.")
]
Multilabel = Annotated[
    bool,
    typer.Option("--multilabel", help="Write a mask for each class, too, in which overlaps stay."),
]
CheckTokens = Annotated[
    bool,
    typer.Option(
        "--check-tokens", help="Compare every class with the references, in small volumes, too."
    ),
]
KeepLargest = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-largest",
        metavar="NAME",
        help="Keep the largest part of this class; may be repeated.",
    ),
]
MinVolume = Annotated[
    list[str] | None,
    typer.Option(
        "--min-volume",
        metavar="[NAME=]ML",
        help="Take parts below this volume away, of this class or of all; may be repeated.",
    ),
]


def outputs_of(
    ending: str,
    probabilities: str | None,
    keep_largest: Sequence[str] | None,
    min_volume: Sequence[str] | None,
    *,
    previews: bool,
    multilabel: bool,
    check_tokens: bool = False,
) -> Outputs:
    """The outputs a command line asks for; raises UsageError for words it does not know."""
    from iris_cli.inference.outputs import OUTPUT_ENDINGS, Outputs
    from iris_cli.inference.postprocess import Cleaning
    from iris_cli.inference.probabilities import ProbabilityType

    known = {name.removeprefix("."): name for name in OUTPUT_ENDINGS}
    if ending.removeprefix(".") not in known:
        raise UsageError(
            f"volumes are not written as {ending!r}", expected="--format " + ", ".join(known)
        )
    types = {name: name for name in get_args(ProbabilityType)}
    if probabilities is not None and probabilities not in types:
        raise UsageError(
            f"probabilities are not written as {probabilities!r}",
            expected="--probabilities " + " or ".join(types),
        )
    return Outputs(
        ending=known[ending.removeprefix(".")],
        probabilities=types[probabilities] if probabilities else None,
        cleaning=Cleaning(tuple(keep_largest or ()), tuple(map(_volume, min_volume or ()))),
        previews=previews,
        multilabel=multilabel,
        check_tokens=check_tokens,
    )


def _volume(text: str) -> tuple[str | None, float]:
    """Class (None for all) and millilitres of `NAME=ML` or `ML`."""
    name, _, number = text.rpartition("=")
    try:
        millilitres = float(number)
    except ValueError:
        millilitres = math.nan
    if not (millilitres > 0 and math.isfinite(millilitres)):
        raise UsageError(
            f"{text!r} is no volume of a class",
            expected="a class and millilitres, as liver=5, or millilitres for every class",
        )
    return name or None, millilitres
