"""`iris model`: import, list, choose, export and download models."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from iris_cli.errors import DataRefused, EnvironmentProblem, IrisError, UsageError
from iris_cli.files.download import file_checksum
from iris_cli.files.schema import nearest, read_json
from iris_cli.model.bank import load_bank, save_bank
from iris_cli.model.card import CARD_FILE, ModelCard, ModelSource, parse_card
from iris_cli.model.model import copy_model, load_model, save_model
from iris_cli.model.registry import (
    default_name,
    find_by_name,
    find_model,
    place_for,
    registered_models,
    shipped_models,
)
from iris_cli.model.released import Copy, model_of, read_released, write_released

_RELEASED_ENDINGS = (".pth", ".pt")


@dataclass(frozen=True)
class ImportReport:
    """A registered model. known: it was there already and nothing was written."""

    folder: Path
    card: ModelCard
    parameters: int
    known: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        card = self.card.model_dump(mode="json")
        return {
            "model": str(self.folder),
            "card": card,
            "parameters": self.parameters,
            "known": self.known,
        }


@dataclass(frozen=True)
class ListedModel:
    """A model by its name. card: None where it cannot be read, for the reason in `problem`."""

    name: str
    folder: Path
    ships: bool
    is_default: bool
    card: ModelCard | None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "ships": self.ships,
            "default": self.is_default,
            "card": None if self.card is None else self.card.model_dump(mode="json"),
            "problem": self.problem,
        }


@dataclass(frozen=True)
class PublishedFile:
    """Where somebody publishes weights: a repository of the Hugging Face hub and a file in it."""

    repository: str
    file: str

    @property
    def page(self) -> str:
        """The page for people."""
        return f"https://huggingface.co/{self.repository}"


PUBLISHED: Mapping[str, PublishedFile] = MappingProxyType(
    {"mass-base": PublishedFile("StanfordAIMI/MASS", "mass_base.pth")}
)

Fetch = Callable[[PublishedFile], Path]


def import_model(
    source: Path,
    name: str,
    *,
    weights: Copy | None = None,
    licence: str | None = None,
    registry: Path | None = None,
) -> ImportReport:
    """Register a model: a file of released weights, or a model folder or file of iris.

    weights: of released weights, as `read_released`. licence: for the card, where the file does
    not state its own. The same import again changes nothing.
    raises UsageError for a name that is taken or cannot be one, DataRefused as the readers do.
    """
    folder = place_for(name, registry)
    if source.suffix in _RELEASED_ENDINGS:
        return _import_released(source, folder, weights, licence)
    if weights is not None or licence is not None:
        raise UsageError(
            "a model of iris has one copy of its weights, and a licence of its own",
            file=source,
            fix="leave out --weights and --licence",
        )
    if (folder / CARD_FILE).exists():
        raise _taken(folder)
    copied = copy_model(source, folder, name=name)
    bank = load_bank(source, copied)
    if bank is not None:
        save_bank(folder, bank, copied.card.fingerprint)
    return _report(folder)


def list_models(registry: Path | None = None) -> tuple[ListedModel, ...]:
    """All models that have a name, the shipped ones first; the weights are not read."""
    shipped, default = shipped_models(), default_name(registry)
    names = (*shipped, *(name for name in registered_models(registry) if name not in shipped))
    return tuple(_listed(name, name in shipped, name == default, registry) for name in names)


def export_model(
    name_or_path: str | Path | None, output: Path, *, registry: Path | None = None
) -> Path:
    """Write a model to `output`: the published layout (`.pth`), one `.safetensors`, or a folder.

    raises UsageError where `output` exists, or a `.pth` cannot hold the model's network.
    """
    source = find_model(name_or_path, registry)
    if output.exists():
        raise UsageError(
            "the output is there already", file=output, fix="choose another name, or remove it"
        )
    if output.suffix in _RELEASED_ENDINGS:
        return write_released(output, load_model(source))
    copied = copy_model(source, output)
    bank = load_bank(source, copied)
    if bank is not None and output.is_dir():
        save_bank(output, bank, copied.card.fingerprint)
    return output


def download_model(
    name: str, *, registry: Path | None = None, fetch: Fetch | None = None
) -> ImportReport:
    """Fetch published weights and register them under their name.

    fetch: default the Hugging Face hub. raises EnvironmentProblem, with what to fetch by hand and
    how to import it, where huggingface_hub is missing or the hub cannot be reached.
    """
    if name not in PUBLISHED:
        guess = nearest(name, list(PUBLISHED))
        raise UsageError(
            f"no published model is called {name!r}",
            expected=f"one of: {', '.join(PUBLISHED)}",
            fix=f"did you mean {guess!r}?" if guess else None,
        )
    folder = place_for(name, registry)
    if (folder / CARD_FILE).exists():
        return _report(folder, known=True)
    path = (fetch or fetch_from_hub)(PUBLISHED[name])
    return import_model(path, name, registry=registry)


def fetch_from_hub(published: PublishedFile) -> Path:
    """Download a file into the hub's own cache; its SHA-256 is compared with what the hub says.

    raises EnvironmentProblem where that cannot be done, DataRefused where the sums differ.
    """
    try:
        hub = importlib.import_module("huggingface_hub")  # of the extra [hub]
    except ImportError:
        raise _by_hand(published, "huggingface_hub is not installed") from None
    try:
        path = Path(hub.hf_hub_download(published.repository, published.file))
        (entry,) = hub.HfApi().get_paths_info(published.repository, [published.file])
        expected = entry.lfs.sha256
    except Exception as error:  # of whatever library the hub's client stands on
        first = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise _by_hand(published, f"{type(error).__name__}: {first}"[:300]) from error
    found = file_checksum(path)
    if found != expected:
        raise DataRefused(
            "the downloaded file is not the one the hub describes",
            file=path,
            found=f"sha256 {found}",
            expected=f"sha256 {expected}",
            fix="remove the file and run the same line again",
        )
    return path


def _by_hand(published: PublishedFile, found: str) -> EnvironmentProblem:
    name = next(name for name, item in PUBLISHED.items() if item == published)
    return EnvironmentProblem(
        f"{published.file} cannot be downloaded from here",
        file=published.page,
        found=found,
        expected="the Hugging Face hub, and the package huggingface_hub",
        fix="pip install 'iris-segmentation[hub]' and run the same line again; or fetch "
        f"{published.file} from {published.page} on another machine, copy it here, and run: "
        f"iris model import {published.file} --name {name}",
    )


def _import_released(
    source: Path, folder: Path, weights: Copy | None, licence: str | None
) -> ImportReport:
    released = read_released(source, weights)
    if (folder / CARD_FILE).exists():
        if not _is_same(_card(folder).source, released.source):
            raise _taken(folder)
        return _report(folder, known=True)
    model = model_of(released, name=folder.name, licence=licence)
    save_model(folder, model.network, model.card, half=False)
    return _report(folder)


def _is_same(registered: ModelSource | None, source: ModelSource) -> bool:
    """By content: the file may have another name by now."""
    return registered is not None and registered.model_copy(update={"file": source.file}) == source


def _report(folder: Path, *, known: bool = False) -> ImportReport:
    model = load_model(folder)
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return ImportReport(folder, model.card, parameters, known)


def _taken(folder: Path) -> UsageError:
    return UsageError(
        f"the name {folder.name!r} is taken by another model",
        file=folder,
        fix="choose another --name, or remove that folder",
    )


def _listed(name: str, ships: bool, is_default: bool, registry: Path | None) -> ListedModel:
    folder = find_by_name(name, registry)
    assert folder is not None
    try:
        return ListedModel(name, folder, ships, is_default, _card(folder))
    except IrisError as error:
        return ListedModel(name, folder, ships, is_default, None, error.problem)


def _card(folder: Path) -> ModelCard:
    return parse_card(read_json(folder / CARD_FILE), file=folder / CARD_FILE)
