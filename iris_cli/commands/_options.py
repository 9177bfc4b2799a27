"""Options that several commands share, defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Write the result as JSON to standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")]
Workspace = Annotated[
    Path,
    typer.Option(
        "--workspace",
        "-w",
        envvar="IRIS_WORKSPACE",
        help="Folder that holds raw/, plans/, preprocessed/, runs/ and tasks/.",
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers", "-j", min=0, help="Worker processes of one thread each; 0 works in process."
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda or cuda:N."),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Model name, folder or file; default as `iris model list` marks it."
    ),
]
AssumeSpacing = Annotated[
    float | None,
    typer.Option(help="Voxel edge in mm, for files without position."),
]
