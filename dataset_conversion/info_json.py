"""Sets described by an info.json: `images/` and `labels/` with equal names, and `info.json`.

`source` is one set, or a folder of sets (with an optional `splits.json`: roles and case lists).

Decisions that the form leaves open:

- Roles come from `splits.json`, else from the lists in info.json. Lists `test_partial`,
  `format_only` and `cases` are `test`: nothing is trained on them. Cases without a label map are
  `unlabelled`.
- `imagesTs` holds what is scored: test cases, and the `query` list where a set names one; its
  `context` list (the examples) is in `imagesTr`, whatever the role.
- `not_contoured` becomes `not_annotated`; a class named "... (MR only)" is not annotated in the
  cases of another modality.
- A trailing remark in a class name is dropped where the name stays unique: "white matter lesion
  (consensus of three raters)" is the class "white matter lesion".
- Instance labels ("1..n": one value per cell) become one class, a region of all values found.
- A set with one label table per case is one raw set per table, named `<set>_<first case>`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from dataset_conversion import msd
from dataset_conversion.facts import SetFacts, Verified
from dataset_conversion.family import Member, Members, SetFamily
from dataset_conversion.raw_set import Split
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Refused, Scan
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.building import TransferMode
from iris_cli.dataset.classes import read_modality
from iris_cli.dataset.dataset_json import Role
from iris_cli.dataset.label_files import order_of_overlaps
from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.schema import parse_record, read_json
from iris_cli.volume.reading import is_volume, read_labels, volume_name

INFO, SPLITS = "info.json", "splits.json"

# What info.json says only in prose: "one value per nucleus (a, b) or per cell (c)".
_INSTANCES_OF_CASES = re.compile(r"\bper (\w+) \(([^()]*)\)")
_INSTANCE_NOUNS = {
    "nucleus": "nuclei",
    "cell": "cells",
    "vertebra": "vertebrae",
    "lesion": "lesions",
}
# "cord (where white and grey matter are not told apart)": with the values of "cord white matter"
# and "cord grey matter" it is the whole cord.
_WHOLE_OF_PARTS = re.compile(r"(.+?) \(where .+ (?:is|are) not told apart\)")
# Two phases of the heart of one subject (Sunnybrook Cardiac Data).
_HEART_PHASE = re.compile(r"(scd\d+)_(?:ed|es)")
_ROLE_OF_LIST: dict[str, Role] = {
    "train": "train",
    "validate": "validate",
    "test": "test",
    "test_partial": "test",
    "format_only": "test",
    "cases": "test",
}


class Info(pydantic.BaseModel):
    """The keys of an info.json that matter here; others are free."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")

    name: str | None = None
    modality: str = ""
    labels: dict[str, str | dict[str, str]] = pydantic.Field(default_factory=dict)
    subjects: int | None = None
    cases: dict[str, list[str]] = pydantic.Field(default_factory=dict)
    cases_info: dict[str, dict[str, Any]] = pydantic.Field(default_factory=dict)
    licence: str | None = None
    source: str | None = None
    citation: str | None = None
    changed: str | None = None
    known_defects: list[str] = pydantic.Field(default_factory=list)


@contextmanager
def _open(source: Path, target: Path, mode: TransferMode) -> Iterator[Members]:
    """One set, or a folder of sets, which become folders below `target`.

    Sets without `images/` are left out of a folder of sets and said.
    raises UsageError where there is no info.json, DataRefused where a set contradicts itself.
    """
    if (source / INFO).is_file():
        yield Members(tuple(_set_in(source).members(target)))
        return
    if not source.is_dir():
        raise UsageError("no such folder", file=source, fix="check the path")
    sets = sorted(folder for folder in source.iterdir() if (folder / INFO).is_file())
    if not sets:
        raise UsageError(
            "neither a set nor a folder of sets",
            file=source,
            expected="images/, labels/ and info.json",
            fix="give the folder that holds info.json",
        )
    whole = [folder for folder in sets if (folder / "images").is_dir()]
    found: list[Member] = []
    refused: list[Refused] = []
    for folder in whole:
        try:
            found += _set_in(folder).members(target / folder.name)
        except DataRefused as error:
            refused.append(Refused(folder.name, error))
    others = tuple(folder.name for folder in sets if folder not in whole)
    message = "not laid out as images/ + labels/, left out"
    left_out = (Deviation(message, others),) if others else ()
    yield Members(tuple(found), left_out, tuple(refused))


def _set_in(source: Path) -> _InfoSet:
    info = parse_record(read_json(source / INFO), Info, file=source / INFO)
    if not (source / "images").is_dir():
        raise UsageError(
            "this set is not laid out as images/ + labels/",
            file=source,
            fix="make volumes of DICOM folders first, for example with dcm2niix",
        )
    splits = _read_splits(source.parent / SPLITS).get(source.name, info.cases)
    return _InfoSet(source, info, splits)


def _read_splits(path: Path) -> dict[str, dict[str, list[str]]]:
    """Case lists by set; keys of a set that are no lists of cases are left out."""
    if not path.is_file():
        return {}
    content = read_json(path)
    sets = content.get("sets", content) if isinstance(content, dict) else None
    if not isinstance(sets, dict):
        raise DataRefused("splits.json holds no sets", file=path)
    return {
        name: {key: value for key, value in lists.items() if isinstance(value, list)}
        for name, lists in sets.items()
        if isinstance(lists, dict)
    }


@dataclass(frozen=True)
class _InfoSet:
    source: Path
    info: Info
    splits: Mapping[str, Sequence[str]]

    def members(self, target: Path) -> Iterator[Member]:
        """One raw data set, or one per label table."""
        tables = self._tables()
        for first, labels in tables.items():
            folder = target.with_name(f"{target.name}_{first}") if len(tables) > 1 else target
            facts = self._facts(folder.name)
            scan = functools.partial(self.scan, facts=facts, labels=labels, first=first)
            yield Member(PublicSet(facts, scan), self.source, folder)

    def scan(
        self, tree: SourceTree, *, facts: SetFacts, labels: Mapping[str, str], first: str
    ) -> Scan:
        """The cases of one label table."""
        images = _volumes(tree, "images")
        label_maps = _volumes(tree, "labels")
        self._refuse_missing(images)
        tables = self._tables()
        mine = [name for name in images if self._table_of(name, tables) == first]
        labelled = {name: label_maps[name] for name in mine if name in label_maps}
        classes, has_regions = self._classes(labels, list(labelled.values()), set(mine))
        texts = {name: self._modality_text(name) for name in mine}
        kinds = {read_modality(text) for text in texts.values()}
        channel = _channel_name(next(iter(texts.values()))) if len(kinds) == 1 else "mixed"
        cases = [
            replace(
                self._case(name, images[name], labelled.get(name)),
                modality=_channel_name(texts[name]) if len(kinds) > 1 else None,
                not_annotated=self._not_annotated(name, classes, labels, texts)
                if name in labelled
                else (),
            )
            for name in mine
        ]
        unlisted = sorted(set(mine) - {n for listed in self.splits.values() for n in listed})
        deviations = []
        if len(tables) > 1:
            deviations.append(Deviation(f"the labels of {first} have their own table"))
        if unlisted and self.splits:
            deviations.append(Deviation("in no list, not trained on", tuple(unlisted)))
        order = tuple(_order(classes)) if has_regions else None
        found = replace(facts, channels=(channel,), labels=classes, regions_class_order=order)
        return Scan(found, tuple(cases), tuple(deviations))

    def _facts(self, name: str) -> SetFacts:
        info = self.info
        changed = (f"changed by its publisher: {info.changed}",) if info.changed else ()
        return SetFacts(
            name=name,
            title=info.name or self.source.name,
            channels=(),
            labels={},
            licence=info.licence or "",
            page=info.source or "",
            layout="images/, labels/, info.json",
            sources=(INFO,),
            subjects="as info.json says, else by the names of the cases",
            citation=info.citation,
            verified=Verified.ARCHIVE,
            defects=(*info.known_defects, *changed),
        )

    def _tables(self) -> dict[str, dict[str, str]]:
        """Label tables (value -> name) by the first case they are for."""
        nested = {k: v for k, v in self.info.labels.items() if isinstance(v, dict)}
        if not nested:
            return {"": {k: v for k, v in self.info.labels.items() if isinstance(v, str)}}
        return {key.split(",")[0].strip(): table for key, table in nested.items()}

    def _table_of(self, case: str, tables: Mapping[str, object]) -> str:
        if "" in tables:
            return ""
        for key in self.info.labels:
            if case in [name.strip() for name in key.split(",")]:
                return key.split(",")[0].strip()
        raise DataRefused(
            f"case {case!r} is in no label table", file=self.source / INFO, fix="add it to labels"
        )

    def _refuse_missing(self, images: Mapping[str, Path]) -> None:
        listed = {name for names in self.splits.values() for name in names}
        missing = sorted(listed - set(images))
        if missing or not images:
            raise DataRefused(
                f"{self.source.name}: cases of the lists have no image",
                file=self.source / "images",
                found=", ".join(missing[:10]) or "no image at all",
                expected=f"{len(listed)} cases",
                fix="complete the folder, or correct the lists",
            )

    def _classes(
        self, labels: Mapping[str, str], labelled: Sequence[Path], cases: set[str]
    ) -> tuple[dict[str, int | list[int]], bool]:
        """The label table by class name, and whether it has regions."""
        instances = [text for value, text in labels.items() if not value.isdecimal()]
        if instances:
            values = _values_found(labelled)
            names = _instance_classes(labels, cases) or {_instance_noun(instances[0]): set()}
            return {name: list(values) for name in names}, True
        names_by_text = _class_names(labels.values())
        texts = _unique_texts(labels)
        table: dict[str, int | list[int]] = {
            names_by_text.get(text, text): int(value)
            for value, text in texts.items()
            if value != "0"
        }
        regions = _regions(labels)
        return {**table, **regions}, bool(regions)

    def _case(self, name: str, image: Path, label: Path | None) -> FoundCase:
        role = self._role(name) if label is not None else "unlabelled"
        split = self._split(name, role)
        return FoundCase(name, (image,), label, subject=self._subject(name), split=split, role=role)

    def _role(self, case: str) -> Role:
        for key, role in _ROLE_OF_LIST.items():
            if case in self.splits.get(key, ()):
                return role
        return "test" if self.splits else "train"

    def _split(self, case: str, role: Role) -> Split:
        if case in self.splits.get("context", ()) or case in self.splits.get("format_only", ()):
            return Split.TRAINING
        if case in self.splits.get("cases", ()):
            return Split.TRAINING
        is_query = case in self.splits.get("query", ())
        return Split.TEST if is_query or role == "test" else Split.TRAINING

    def _subject(self, case: str) -> str:
        stated = self.info.cases_info.get(case, {}).get("subject")
        if stated:
            return str(stated)
        if self.info.subjects == 1:
            return self.source.name
        return subject_of(case)

    def _modality_text(self, case: str) -> str:
        """The modality of one case: its own, or the part of the set's text that its name names."""
        own = self.info.cases_info.get(case, {}).get("modality")
        if own:
            return str(own)
        parts = [part.strip() for part in self.info.modality.split(";")]
        words = set(_words(case))
        named = [part for part in parts if words & set(_words(part)[:1])]
        return named[0] if named else parts[0]

    def _not_annotated(
        self,
        case: str,
        classes: Mapping[str, object],
        labels: Mapping[str, str],
        texts: Mapping[str, str],
    ) -> tuple[str, ...]:
        stated = self.info.cases_info.get(case, {}).get("not_contoured", [])
        found = {_match_class(str(text), classes, self.source / INFO) for text in stated}
        for text, name in _class_names(labels.values()).items():
            only = re.search(r"\((\w+) only\)$", text)
            if only and only[1].lower() not in _words(texts[case]):
                found.add(name)
        for name, cases in _instance_classes(labels, set(texts)).items():
            if name in classes and case not in cases:
                found.add(name)
        return tuple(name for name in classes if name in found)


def _instance_classes(labels: Mapping[str, str], cases: set[str]) -> dict[str, set[str]]:
    """Classes of instances and the cases that have them, where the label table names both."""
    texts = [text for value, text in labels.items() if not value.isdecimal()]
    found = [match for text in texts for match in _INSTANCES_OF_CASES.findall(text)]
    if len(found) < 2:
        return {}
    named = {
        _INSTANCE_NOUNS.get(noun.lower(), noun): {case.strip() for case in names.split(",")}
        for noun, names in found
    }
    return named if set().union(*named.values()) <= cases else {}


def _values_found(labelled: Sequence[Path]) -> list[int]:
    found: set[int] = set()
    for path in labelled:
        found |= {int(value) for value in np.unique(read_labels(path).array)}
    return sorted(found - {0})


def _volumes(tree: SourceTree, folder: str) -> dict[str, Path]:
    """The volumes of a folder by name."""
    found = tree.match(rf"{folder}/[^/]+")
    return {volume_name(path): path for path, _ in found if is_volume(path)}


def _order(classes: Mapping[str, int | list[int]]) -> list[int]:
    """The value each class gets in outputs: one that it has in the label maps where that can be."""
    smallest = [value if isinstance(value, int) else min(value) for value in classes.values()]
    return order_of_overlaps(classes) or smallest


def subject_of(case: str) -> str:
    """The subject of a case where its name tells it; else the case is its own."""
    phase = _HEART_PHASE.fullmatch(case)
    return phase[1] if phase else msd.subject_of(case)


def _instance_noun(text: str) -> str:
    """What the instances are, as a plural: nuclei, cells, ...; objects where it is not said."""
    words = _words(text)
    plurals = (many for one, many in _INSTANCE_NOUNS.items() if one in words or many in words)
    return next(plurals, "objects")


def _regions(labels: Mapping[str, str]) -> dict[str, int | list[int]]:
    """Classes that are the union of values, where the label table tells so."""
    regions: dict[str, int | list[int]] = {}
    for value, text in labels.items():
        whole = _WHOLE_OF_PARTS.fullmatch(" ".join(text.split()))
        if whole is None:
            continue
        parts = [int(v) for v, t in labels.items() if t.startswith(f"{whole[1]} ") and v != value]
        if parts:
            regions[whole[1]] = sorted([int(value), *parts])
    return regions


def _unique_texts(labels: Mapping[str, str]) -> dict[str, str]:
    """Names by value; one that several values share gets its value appended."""
    texts = {value: " ".join(text.split()) for value, text in labels.items()}
    shared = list(texts.values())
    return {v: text if shared.count(text) == 1 else f"{text} {v}" for v, text in texts.items()}


def _class_names(texts: Any) -> dict[str, str]:
    """Class names for label texts: without a trailing remark where they stay unique."""
    plain = [" ".join(str(text).split()) for text in texts]
    bases = [re.sub(r"\s*\([^()]*\)$", "", text) for text in plain]
    return {
        text: base if base and bases.count(base) == 1 else text
        for text, base in zip(plain, bases, strict=True)
    }


def _match_class(text: str, classes: Mapping[str, object], file: Path) -> str:
    """The class a remark like "myocardium" means; raises DataRefused where that is not clear."""
    wanted = _words(text)
    for name in classes:
        if _words(name) == wanted:
            return name
    matches = [name for name in classes if set(wanted) <= set(_words(name))]
    if len(matches) != 1:
        raise DataRefused(
            f"not_contoured names {text!r}, which is not one class",
            file=file,
            found=", ".join(matches) or "no class",
            expected="one of " + ", ".join(classes),
            fix="correct not_contoured",
        )
    return matches[0]


def _channel_name(modality: str) -> str:
    """A channel name nnU-Net understands: "CT" for CT, else the parts of the text that name one.

    "MR FLAIR, T1w, T2w (3 T), brain only" is "MR FLAIR, T1w, T2w".
    """
    if read_modality(modality) == "ct":
        return "CT"
    parts = [part.strip() for part in re.split(r"[,;]|\([^()]*\)", modality) if part.strip()]
    named = [part for part in parts if read_modality(part)]
    return ", ".join(named or parts[:1]) or "image"


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


INFO_JSON = SetFamily(
    "info_json", "a set (or a folder of sets) of images/, labels/ and info.json", _open
)
