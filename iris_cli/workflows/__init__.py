"""The jobs of iris, one module each: typed, without Typer and without printing.

The command line and Python users call the same functions; what a job has to say it returns or
raises (iris_cli.errors). `load_model` gives a model for arrays; it is imported when it is asked
for, so that this package stays quick to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iris_cli.workflows.in_context import InContextModel, load_model

__all__ = ["InContextModel", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from iris_cli.workflows import in_context

    return getattr(in_context, name)
