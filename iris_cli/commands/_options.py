"""Options that several commands share, defined once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from iris_cli.errors import UsageError

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
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="CLUSTER",
        help="Work on a dask cluster: scheduler.json, tls://host:port, tcp://... or local:N.",
    ),
]
OnlyFailed = Annotated[
    bool, typer.Option("--only-failed", help="Only cases that failed in an earlier run.")
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="End at the first case that fails, with its exit code; begin no other."
    ),
]
NumParts = Annotated[
    int | None,
    typer.Option(
        "--num-parts",
        help="Work on one of N shares of the cases, 1 for all; by default as a scheduler's job "
        "array says.",
    ),
]
PartId = Annotated[
    int | None,
    typer.Option(
        "--part-id", help="Which share, from 0; by default the number in a scheduler's job array."
    ),
]
CaseTimeout = Annotated[
    float | None,
    typer.Option(
        "--case-timeout",
        min=0.001,
        help="Seconds after which a case is given up (with -j 1 or more); none by default.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto, fp32, bf16 or fp16; auto is bf16 where the device computes in it.",
    ),
]
MaxRam = Annotated[
    str | None,
    typer.Option("--max-ram", metavar="SIZE", help="Most memory of one case, like 8G or 500M."),
]
MaxVram = Annotated[
    str | None,
    typer.Option(
        "--max-vram", metavar="SIZE", help="Most memory of the GPU; by default what is free."
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

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def refuse_beside_dask(dask: str | None, given: dict[str, bool]) -> None:
    """Refuse options of workers of this machine beside a cluster, which has its own."""
    names = [name for name, is_given in given.items() if is_given]
    if dask is not None and names:
        raise UsageError(
            "a dask cluster has its own workers",
            found=f"--dask and {' and '.join(names)}",
            fix=f"leave {' and '.join(names)} out; how many workers there are is said where they "
            "are started",
        )


def parse_bytes(text: str) -> int:
    """A size as people write it (8G, 500M, 2.5 GiB) in bytes; raises UsageError for any other."""
    match = re.fullmatch(r"([0-9.]+)\s*([KMGT]?)(I?)B?", text.strip().upper())
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if match is None or number <= 0:
        raise UsageError(f"{text!r} is no size of memory", expected="a number and a unit, as 8G")
    unit = 1024 ** "KMGT".index(match[2]) * 1024 if match[3] and match[2] else _UNITS[match[2]]
    return int(number * unit)
