"""The jobs of iris, one module each: typed, without Typer and without printing.

The command line and Python users call the same functions; what a job has to say it returns or
raises (iris_cli.errors). `load_predictor` gives a model with its tasks for images in memory,
`load_model` a model for arrays; they are imported when they are asked for, so that this package
stays quick to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iris_cli.workflows.in_context import InContextModel, load_model
    from iris_cli.workflows.predictor import InMemoryPrediction, Predictor, load_predictor

__all__ = ["InContextModel", "InMemoryPrediction", "Predictor", "load_model", "load_predictor"]

_MODULES = {
    "InContextModel": "in_context",
    "load_model": "in_context",
    "InMemoryPrediction": "predictor",
    "Predictor": "predictor",
    "load_predictor": "predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
