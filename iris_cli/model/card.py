"""The card of a model: everything but the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from iris_cli.errors import DataRefused
from iris_cli.files.schema import Record, parse_record
from iris_cli.network.config import ADDED_FIELDS, NetworkConfig

if TYPE_CHECKING:
    from iris_cli.network.iris_network import IrisNetwork

CARD_FILE = "model.json"
FORMAT: Literal["iris-model-1"] = "iris-model-1"
ProfileName = Literal["iris-1", "mass-1"]
PROFILE: ProfileName = "iris-1"


class ModelSource(Record):
    """The file of released weights that a model was imported from.

    file: its name, without a folder. weights: which copy in it, averaged over training (ema) or
    the last step's (model). bank_size: classes of the memory in it, which is left out.
    """

    file: Annotated[str, Field(max_length=400)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    weights: Literal["ema", "model"]
    bank_size: Annotated[int, Field(ge=0)] | None = None


class ModelCard(Record):
    """What a model is, where it comes from and how it is to be used.

    s0: the model's own working spacing in mm. patch: edge of its window in voxels.
    fingerprint: SHA-256 over the stored tensors and all that decides what the network computes.
    source: of imported weights only.
    """

    format: Literal["iris-model-1"] = FORMAT
    name: Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$", max_length=100)]
    version: Annotated[str, Field(max_length=100)] = "1"
    network: NetworkConfig
    profile: ProfileName = PROFILE
    s0: Annotated[float, Field(gt=0, le=1000)]
    patch: Annotated[int, Field(gt=0, le=4096)]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    licence: str = "not stated"
    training_sets: tuple[str, ...] = ()
    notes: str = ""
    source: ModelSource | None = None

    @model_validator(mode="after")
    def _patch_fits_network(self) -> ModelCard:
        if self.patch % self.network.size_multiple:
            raise ValueError(
                f"patch {self.patch} is not a multiple of {self.network.size_multiple}"
            )
        return self

    @classmethod
    def of(
        cls,
        network: IrisNetwork,
        *,
        name: str,
        version: str = "1",
        s0: float,
        patch: int,
        profile: ProfileName = PROFILE,
        licence: str = "not stated",
        training_sets: tuple[str, ...] = (),
        notes: str = "",
        source: ModelSource | None = None,
    ) -> ModelCard:
        """The card of a network as it is in memory; its fingerprint is computed."""
        from iris_cli.model.fingerprint import fingerprint

        return cls(
            name=name,
            version=version,
            network=network.config,
            profile=profile,
            s0=s0,
            patch=patch,
            fingerprint=fingerprint(
                network.state_dict(), network.config, profile=profile, s0=s0, patch=patch
            ),
            licence=licence,
            training_sets=training_sets,
            notes=notes,
            source=source,
        )


def parse_card(value: object, *, file: object) -> ModelCard:
    """Check a JSON value as a card.

    The network must be stated in full: a default may change, what a model computes may not.
    raises DataRefused, by name for an unknown format and for a field of the network left out.
    """
    found = value.get("format") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or found != FORMAT:
        raise DataRefused(
            "not a model this version of iris can read",
            file=str(file),
            found=f"format {found!r}",
            expected=f"format {FORMAT!r}",
            fix="use the version of iris that wrote it, or export the model again",
        )
    if isinstance(value.get("network"), Mapping):
        value = {**value, "network": _whole_network(value["network"], file)}
    return parse_record(value, ModelCard, file=str(file))


def _whole_network(stated: Mapping[str, object], file: object) -> dict[str, object]:
    """The network section with fields that are younger than the card, at their old value."""
    whole = {**ADDED_FIELDS, **stated}
    missing = [name for name in NetworkConfig.model_fields if name not in whole]
    if missing:
        raise DataRefused(
            "the card does not say all of its network: " + ", ".join(missing),
            file=str(file),
            found=f"no {', '.join(missing)} under 'network'",
            expected="every field of the network",
            fix="use the card as it was written with the weights, or export the model again",
        )
    return whole
