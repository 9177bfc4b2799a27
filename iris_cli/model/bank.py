"""The memory bank of a model: tokens of the classes it was trained on, in `bank.safetensors`.

It lies beside the weights in a model folder and is not part of the model's fingerprint: what a
model computes from references does not depend on it. A model need not have one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.publish import publish
from iris_cli.files.schema import Record, nearest, parse_record
from iris_cli.model.model import Model, open_safetensors
from iris_cli.model.registry import find_model

BANK_FILE = "bank.safetensors"
FORMAT: Literal["iris-bank-1"] = "iris-bank-1"
_KEY = "iris-bank"
_NAMED = 8


class BankEntry(Record):
    """One class of the bank.

    name: `<set>/<class>`. episodes: how many fed its tokens. modality: of the set's images, None
    where its cases differ. spacing_mm: the set's working spacing, at which a task with these
    tokens is worked. licence: of the set.
    """

    name: Annotated[str, Field(pattern=r"^[^/]+/.+$", max_length=400)]
    episodes: Annotated[int, Field(ge=1)]
    modality: Literal["ct", "other"] | None
    spacing_mm: Annotated[float, Field(gt=0, lt=1e6)]
    licence: str | None = None

    @property
    def class_name(self) -> str:
        """The class without its set."""
        return self.name.partition("/")[2]


class _Contents(Record):
    """What stands in the metadata of the file."""

    format: Literal["iris-bank-1"] = FORMAT
    model: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    entries: tuple[BankEntry, ...]


@dataclass(frozen=True)
class Bank:
    """Entries in the order of their names, and per stage their tokens (N, m + 1, C_i) float32."""

    entries: tuple[BankEntry, ...]
    tokens: tuple[Tensor, ...]

    def pick(self, names: Sequence[str]) -> Bank:
        """The entries of these names, in this order; raises UsageError with the nearest names."""
        rows = {entry.name: i for i, entry in enumerate(self.entries)}
        for name in names:
            if name not in rows:
                guess = nearest(name, list(rows)) or _by_class(name, rows)
                more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
                raise UsageError(
                    f"the memory bank has no class {name!r}",
                    expected=(", ".join(list(rows)[:_NAMED]) or "no class") + more,
                    fix=f"did you mean {guess!r}?" if guess else "see `iris info MODEL`",
                )
        chosen = [rows[name] for name in names]
        return Bank(
            tuple(self.entries[i] for i in chosen), tuple(stage[chosen] for stage in self.tokens)
        )


def save_bank(folder: Path, bank: Bank, fingerprint: str) -> Path:
    """Write the bank of the model in `folder`; an empty one removes what lies there.

    fingerprint: the model's as it was written, by which the two are known to belong together.
    """
    path = folder / BANK_FILE
    if not bank.entries:
        path.unlink(missing_ok=True)
        return path
    contents = _Contents(model=fingerprint, entries=bank.entries)
    metadata = {_KEY: json.dumps(contents.model_dump(mode="json"), sort_keys=True)}
    tensors = {f"stage_{i}": stage.contiguous() for i, stage in enumerate(bank.tokens)}

    def write(temporary: Path) -> None:
        save_file(tensors, temporary, metadata)
        temporary.chmod(0o644)  # the library makes files that nobody else may read

    def verify(temporary: Path) -> None:
        _read(temporary)

    return publish(path, write, verify=verify)


def load_bank(name_or_path: str | Path | None, model: Model) -> Bank | None:
    """The bank that lies beside a model; None where it has none.

    name_or_path: as for `load_model`, which gave `model`.
    raises DataRefused where the bank is damaged or belongs to other weights.
    """
    folder = find_model(name_or_path)
    path = folder / BANK_FILE
    if not folder.is_dir() or not path.exists():
        return None
    contents, tokens = _read(path)
    if contents.model != model.card.fingerprint:
        raise DataRefused(
            "weights and memory bank of this model do not belong together",
            file=path,
            found=f"a bank of model {contents.model[:12]}",
            expected=f"of model {model.card.fingerprint[:12]}",
            fix="copy all files of the model from one source, or export it again",
        )
    config = model.network.config
    shapes = [
        (len(contents.entries), config.tokens, config.stage_channels(i))
        for i in range(config.stages)
    ]
    if [tuple(stage.shape) for stage in tokens] != shapes:
        raise DataRefused(
            "the memory bank does not fit its network",
            file=path,
            found=[tuple(stage.shape) for stage in tokens],
            expected=shapes,
            fix="copy all files of the model from one source, or export it again",
        )
    return Bank(contents.entries, tokens)


def _read(path: Path) -> tuple[_Contents, tuple[Tensor, ...]]:
    with open_safetensors(path) as file:
        text = (file.metadata() or {}).get(_KEY)
        names = sorted(file.keys())
        wanted = [f"stage_{i}" for i in range(len(names))]
        tokens = tuple(file.get_tensor(name).clone() for name in wanted if name in names)
    contents = parse_record(_json(text), _Contents, file=path)
    for stage in tokens:
        if stage.dtype != torch.float32 or not bool(torch.isfinite(stage).all()):
            raise DataRefused(
                "the memory bank holds what is no finite float32 number",
                file=path,
                found=stage.dtype,
                fix="copy the file again, or export the model again",
            )
    return contents, tokens


def _json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _by_class(name: str, known: Iterable[str]) -> str | None:
    """A class given without its set."""
    return next((full for full in known if full.partition("/")[2] == name), None)
