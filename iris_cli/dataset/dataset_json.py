"""dataset.json: nnU-Net's keys as they are, and what iris adds under the key "iris".

nnU-Net's own keys are read leniently (unknown ones are tolerated, its users keep notes there; its
version 1, which the Medical Segmentation Decathlon uses, is read too); the section "iris" is
ours and strict: an unknown key there is refused with the nearest known one, because a mistyped
`not_annotated` would silently turn unknown voxels into background.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from iris_cli.dataset.classes import Channel, ClassTable, Modality, class_table, read_modality
from iris_cli.errors import DataRefused
from iris_cli.files.publish import publish_json
from iris_cli.files.schema import Record, parse_record, read_json
from iris_cli.volume.reading import VOLUME_ENDINGS

FILE_NAME = "dataset.json"
SECTION = "iris"

Role = Literal["train", "validate", "test", "unlabelled"]
AbsentMeans = Literal["background", "not_annotated"]
# A boolean is an int in Python; as a label value it is a mistake.
LabelValue = Annotated[int, pydantic.BeforeValidator(lambda value: _no_boolean(value))]


class IrisSection(Record):
    """What nnU-Net does not know. Every key is optional; names are of cases and classes."""

    modality: str | list[str] | dict[str, str] | None = None
    case_modality: dict[str, str] = pydantic.Field(default_factory=dict)
    subjects: dict[str, str] = pydantic.Field(default_factory=dict)
    not_annotated: dict[str, list[str]] = pydantic.Field(default_factory=dict)
    absent_means: AbsentMeans = "background"
    mirror_pairs: list[tuple[str, str]] = pydantic.Field(default_factory=list)
    roles: dict[str, Role] = pydantic.Field(default_factory=dict)
    held_out_classes: list[str] = pydantic.Field(default_factory=list)
    licence: str | None = None
    source: str | None = None
    citation: str | None = None


class ReferencedCase(pydantic.BaseModel):
    """nnU-Net's "dataset" form: a case that names its own files."""

    model_config = pydantic.ConfigDict(frozen=True)

    images: list[str]
    label: str | None = None


class DatasetJson(pydantic.BaseModel):
    """The content of a dataset.json in nnU-Net's version 2 form."""

    model_config = pydantic.ConfigDict(frozen=True, extra="allow")

    channel_names: dict[str, str]
    labels: dict[str, LabelValue | list[LabelValue]]
    file_ending: str | None = None
    numTraining: int | None = None
    regions_class_order: list[int] | None = None
    name: str | None = None
    dataset: dict[str, ReferencedCase] | None = None
    iris: IrisSection = pydantic.Field(default_factory=IrisSection)

    def class_table(self, file: Path | str | None = None) -> ClassTable:
        """The classes, checked; `file` is named where they are refused."""
        return class_table(self.labels, regions_class_order=self.regions_class_order, file=file)


def read_dataset_json(path: Path) -> DatasetJson:
    """Read and check a dataset.json of nnU-Net version 2 or 1.

    raises UsageError where it does not exist, DataRefused where it is not one.
    """
    return parse_dataset_json(read_json(path), path)


def parse_dataset_json(content: object, path: Path) -> DatasetJson:
    """Check the content of a dataset.json; `path` is named where it is refused."""
    if not isinstance(content, dict):
        raise DataRefused("dataset.json is not a table", file=path, expected="a JSON object")
    if is_version_1(content):
        content = from_version_1(content, path)
    parsed = parse_record(content, DatasetJson, file=path)
    if parsed.file_ending is not None and parsed.file_ending not in VOLUME_ENDINGS:
        raise DataRefused(
            "the file_ending of this data set cannot be read",
            file=path,
            found=parsed.file_ending,
            expected="one of " + ", ".join(VOLUME_ENDINGS),
            fix="convert the files to one of these formats",
        )
    return parsed


def is_version_1(content: Mapping[str, Any]) -> bool:
    """Whether this is nnU-Net version 1's form: `modality`, and labels from value to name."""
    return "channel_names" not in content and "modality" in content


def from_version_1(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Turn version 1's form (of the Medical Segmentation Decathlon) into version 2's."""
    modality, labels = content["modality"], content.get("labels")
    if not isinstance(modality, dict) or not isinstance(labels, dict):
        raise DataRefused(
            "neither nnU-Net's version 2 nor its version 1 form",
            file=path,
            expected='"channel_names" {"0": "CT"} and "labels" {"background": 0, "liver": 1}',
            fix="write the keys of nnU-Net's version 2",
        )
    kept = {key: content[key] for key in ("name", "file_ending", SECTION) if key in content}
    training = content.get("training")
    return {
        **kept,
        "channel_names": modality,
        "labels": labels_by_name(labels, path),
        "numTraining": len(training) if isinstance(training, list) else None,
    }


def labels_by_name(labels: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Invert a table value -> name; a name that several values share gets the value appended."""
    names = [str(name) for name in labels.values()]
    table: dict[str, int] = {}
    for value, name in labels.items():
        if not str(value).isdecimal():
            raise DataRefused(
                "a label value is not a whole number", file=path, found=f"{value!r}: {name!r}"
            )
        number = int(value)
        text = "background" if number == 0 else str(name)
        table[text if names.count(str(name)) == 1 else f"{text} {number}"] = number
    return table


def channels(parsed: DatasetJson, path: Path) -> tuple[Channel, ...]:
    """The channels in order; modality as declared, else as the channel's name says, else None."""
    names = parsed.channel_names
    indices = sorted(int(key) for key in names if key.isdecimal())
    if indices != list(range(len(names))) or not indices:
        raise DataRefused(
            "channel_names must be numbered 0, 1, 2, ...",
            file=path,
            found=", ".join(names) or "nothing",
            fix="correct channel_names in dataset.json",
        )
    declared = _declared_modalities(parsed.iris.modality, len(indices), path)
    by_index = {int(key): name for key, name in names.items()}
    return tuple(
        Channel(index, by_index[index], declared.get(index) or read_modality(by_index[index]))
        for index in indices
    )


def known_modality(text: str, path: Path) -> Modality:
    """A declared modality; raises DataRefused where the text names none."""
    modality = read_modality(text)
    if modality is None:
        raise DataRefused(
            "a declared modality is not known",
            file=path,
            found=text,
            expected="ct, other, or a name like CT, MR, PET, microscopy",
            fix='write "ct" or "other"',
        )
    return modality


def write_dataset_json(
    folder: Path,
    *,
    channel_names: Mapping[str, str],
    labels: Mapping[str, int | list[int]],
    num_training: int,
    file_ending: str,
    iris: Mapping[str, Any] | None = None,
    regions_class_order: list[int] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `folder/dataset.json` with nnU-Net's keys and the section "iris".

    Checked before it is written: what iris writes it can read. `extra` are further keys that
    nnU-Net tolerates (name, description, reference).
    """
    content: dict[str, Any] = {
        "channel_names": dict(channel_names),
        "labels": {"background": 0, **labels},
        "numTraining": num_training,
        "file_ending": file_ending,
        **(extra or {}),
    }
    if regions_class_order is not None:
        content["regions_class_order"] = regions_class_order
    if iris:
        content[SECTION] = dict(iris)
    path = folder / FILE_NAME
    channels(parsed := parse_dataset_json(content, path), path)
    parsed.class_table(path)
    return publish_json(path, content)


def _declared_modalities(
    declared: str | list[str] | dict[str, str] | None, count: int, path: Path
) -> dict[int, Modality]:
    if declared is None:
        return {}
    if isinstance(declared, str):
        declared = [declared] * count
    if isinstance(declared, list):
        declared = {str(index): text for index, text in enumerate(declared)}
    known = {str(index) for index in range(count)}
    if not set(declared) <= known:
        raise DataRefused(
            "iris.modality names a channel that does not exist",
            file=path,
            found=", ".join(sorted(set(declared) - known)),
            expected=f"channels 0 to {count - 1}",
        )
    return {int(key): known_modality(text, path) for key, text in declared.items()}


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a label value is a whole number, not true or false")
    return value
