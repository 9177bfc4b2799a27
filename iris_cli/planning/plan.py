"""The plan: everything a run is made of, typed, with a reason in words for every choice.

`plans/<name>.json` is written by `iris plan`, may be edited by hand or by `--set key=value`, and is
copied into every run. Folders in it are relative to the workspace where they lie inside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from iris_cli.dataset.raw import RawDataset, Role
from iris_cli.dataset.sides import undeclared_mirror_pairs
from iris_cli.errors import DataRefused
from iris_cli.files.publish import publish_json
from iris_cli.files.schema import Record, parse_record, read_json
from iris_cli.network.config import NetworkConfig
from iris_cli.planning.declared import Declared
from iris_cli.planning.fingerprint import SetFingerprint, fingerprint_set
from iris_cli.planning.presets import Preset, check_patch
from iris_cli.planning.splits import Split, split_cases
from iris_cli.preparation.findings import IntegrityReport
from iris_cli.preparation.measure import CaseFacts, class_values
from iris_cli.preparation.profiles import PROFILE
from iris_cli.preparation.store import STORE_VERSION, store_key
from iris_cli.task.spacing import ReferenceSize, SpacingChoice, spacing_of_references
from iris_cli.training.settings import TrainingSettings

PLAN_FORMAT = "iris-plan-2"
# iris-plan-1 differs in one thing: its sets do not say what was `declared`.
READ_FORMATS = (PLAN_FORMAT, "iris-plan-1")
PREPROCESSED = "preprocessed"
PER_CASE = "per case"
# 8 voxels across: below this a class is hard to see at the working spacing, and a plan says so.
SMALL_CLASS_VOXELS = 512

Positive = Annotated[float, Field(gt=0.0)]


class ChannelPlan(Record):
    """One channel of a set. modality `per case`: as declared for the case, else guessed for it."""

    index: Annotated[int, Field(ge=0)]
    name: str
    modality: Literal["ct", "other", "per case"]


class SetPlan(Record):
    """One data set of a plan.

    raw: its raw folder. classes: name -> raw values. Case lists are by role; `test` cases are
    listed to be left out. weight: factor on how often the set is drawn.
    pairing: `image` where a label value means nothing from one case to the next.
    declared: what the raw set said when it was planned; no setting (planning.declared).
    """

    raw: str
    channels: tuple[ChannelPlan, ...]
    classes: dict[str, tuple[int, ...]]
    ignore_value: int | None = None
    absent_means: Literal["background", "not_annotated"] = "background"
    held_out_classes: tuple[str, ...] = ()
    mirror_pairs: tuple[tuple[str, str], ...] = ()
    symmetric: bool = False
    pairing: Literal["subjects", "image"] = "subjects"
    spacing_mm: Positive
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    train: tuple[str, ...]
    validate_: tuple[str, ...] = Field(default=(), alias="validate")
    test: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    licence: str | None = None
    fingerprint: SetFingerprint
    declared: Declared | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SetPlan:
        lists = (self.train, self.validate_, self.test, self.unlabelled)
        names = [name for case_list in lists for name in case_list]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"cases with two roles: {', '.join(twice)}")
        unknown = sorted(set(self.held_out_classes) - set(self.classes))
        if unknown:
            raise ValueError(f"held_out_classes that are no classes: {', '.join(unknown)}")
        return self

    @property
    def roles(self) -> dict[str, Role]:
        """Case name -> role."""
        by_role: dict[Role, tuple[str, ...]] = {
            "train": self.train,
            "validate": self.validate_,
            "test": self.test,
            "unlabelled": self.unlabelled,
        }
        return {name: role for role, names in by_role.items() for name in names}


class Plan(Record):
    """A plan: network, spacing, sets and schedule; every key is explained in `reasons`."""

    format: Literal["iris-plan-2"] = "iris-plan-2"
    name: str
    preset: str
    recipe: str = "robust"
    network: NetworkConfig
    patch: Annotated[int, Field(gt=0)]
    s0: Positive
    profile: Literal["iris-1"] = "iris-1"
    store_version: Literal[1] = 1
    sets: dict[str, SetPlan]
    held_out_sets: dict[str, str] = Field(default_factory=dict)
    validation_sets: dict[str, str] = Field(default_factory=dict)
    """Raw folders of sets that nothing is trained on and that validation opens."""
    training: TrainingSettings
    reasons: dict[str, str]

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        check_patch(self.network, self.patch)
        both = sorted(set(self.sets) & set(self.held_out_sets))
        if both:
            raise ValueError(f"sets that are held out and trained on: {', '.join(both)}")
        both = sorted(set(self.validation_sets) & (set(self.sets) | set(self.held_out_sets)))
        if both:
            raise ValueError(
                f"validation sets that are also trained on or held out: {', '.join(both)}"
            )
        return self

    def key(self, set_name: str) -> str:
        """The folder name of the set's preprocessed form (CONTRACT, Workspace and plan)."""
        return store_key(self.sets[set_name].spacing_mm, self.profile, self.store_version)

    def store_folder(self, workspace: Path, set_name: str) -> Path:
        """`<workspace>/preprocessed/<set>/<key>`."""
        return workspace / PREPROCESSED / set_name / self.key(set_name)

    def raw_folder(self, workspace: Path, set_name: str) -> Path:
        """Raw folder of a set, resolved against the workspace."""
        return workspace / self.sets[set_name].raw


@dataclass(frozen=True)
class RawSet:
    """A raw set and what the integrity pass found and measured."""

    raw: RawDataset
    report: IntegrityReport


def make_plan(
    sets: Sequence[RawSet],
    preset: Preset,
    *,
    name: str,
    preset_name: str,
    workspace: Path,
    held_out_sets: Mapping[str, Path] | None = None,
    validation_sets: Mapping[str, Path] | None = None,
    seed: int = 0,
) -> Plan:
    """A plan for these sets; nothing is read here. seed: of the split by subject.

    raises DataRefused where a set has no case to train on.
    """
    planned: dict[str, SetPlan] = {}
    reasons = _general_reasons(preset)
    for raw_set in sets:
        set_name = raw_set.raw.name
        planned[set_name], why = _plan_set(raw_set, preset, workspace=workspace, seed=seed)
        reasons |= {f"sets.{set_name}.{key}": text for key, text in why.items()}
    reasons |= share_reasons(planned, preset.training.size_temperature)
    held_out = {n: _portable(folder, workspace) for n, folder in (held_out_sets or {}).items()}
    if held_out:
        reasons["held_out_sets"] = "never opened by planning, preprocessing or training"
    unseen = {n: _portable(folder, workspace) for n, folder in (validation_sets or {}).items()}
    if unseen:
        reasons["validation_sets"] = "never trained on; their curves choose the best checkpoint"
    return Plan(
        name=name,
        preset=preset_name,
        network=preset.network,
        patch=preset.patch,
        s0=preset.s0,
        sets=planned,
        held_out_sets=held_out,
        validation_sets=unseen,
        training=preset.training,
        reasons=reasons,
    )


def fingerprint_of(raw_set: RawSet, *, seed: int = 0) -> SetFingerprint:
    """The fingerprint that a plan has for this set; raises DataRefused as `make_plan`."""
    return fingerprint_set(_facts_for_planning(raw_set, _split(raw_set, seed)))


def read_plan(path: Path) -> Plan:
    """Read a plan of this version or an older one.

    Unknown keys are refused with the nearest known name, newer versions by name.
    """
    content = read_json(path)
    found = content.get("format") if isinstance(content, dict) else None
    if found not in READ_FORMATS:
        raise DataRefused(
            "this is no plan that this version of iris reads",
            file=path,
            found=found,
            expected=" or ".join(READ_FORMATS),
            fix="make it anew with `iris plan`",
        )
    return parse_record({**content, "format": PLAN_FORMAT}, Plan, file=path)


def write_plan(path: Path, plan: Plan) -> Path:
    """Publish a plan as JSON."""
    return publish_json(path, plan.model_dump(mode="json", by_alias=True))


def share_reasons(sets: Mapping[str, SetPlan], temperature: float) -> dict[str, str]:
    """Key of the plan -> in which share of the episodes its set is drawn, and why."""
    return {
        f"sets.{name}.weight": f"drawn in {share:.1%} of the episodes: weight {sets[name].weight:g}"
        f" x cases^{temperature:g}, so that large sets do not drown small ones"
        for name, share in draw_shares(sets, temperature).items()
    }


def draw_shares(sets: Mapping[str, SetPlan], temperature: float) -> dict[str, float]:
    """Share of the episodes that each set supplies."""
    sizes = {
        name: s.weight * max(1, len(s.channels) * (len(s.train) + len(s.unlabelled))) ** temperature
        for name, s in sets.items()
    }
    total = sum(sizes.values()) or 1.0
    return {name: size / total for name, size in sizes.items()}


def _plan_set(
    raw_set: RawSet, preset: Preset, *, workspace: Path, seed: int
) -> tuple[SetPlan, dict[str, str]]:
    raw = raw_set.raw
    split = _split(raw_set, seed)
    facts = _facts_for_planning(raw_set, split)
    fingerprint = fingerprint_set(facts)
    channels, why_channels = _channels(raw, fingerprint)
    spacing = _spacing(facts, preset)
    planned = SetPlan(
        raw=_portable(raw.folder, workspace),
        channels=channels,
        classes=class_values(raw),
        ignore_value=raw.ignore_value,
        absent_means=raw.absent_means,
        held_out_classes=raw.held_out_classes,
        mirror_pairs=raw.mirror_pairs,
        spacing_mm=spacing.spacing_mm,
        train=split.train,
        validate=split.validate,
        test=split.test,
        unlabelled=split.unlabelled,
        licence=raw.licence,
        fingerprint=fingerprint,
        declared=Declared.of(raw),
    )
    reasons = {
        "spacing_mm": spacing.reason + _small_class_note(fingerprint, spacing.spacing_mm),
        "train": split.reason,
        "channels": why_channels,
    }
    return planned, reasons | _label_reasons(raw)


def _split(raw_set: RawSet, seed: int) -> Split:
    raw = raw_set.raw
    hashes = {fact.case: fact.image_hash for fact in raw_set.report.facts}
    return split_cases(raw.cases, set_name=raw.name, seed=seed, image_hashes=hashes)


def _label_reasons(raw: RawDataset) -> dict[str, str]:
    """Why the classes of a set are taken as they are."""
    reasons = {}
    if raw.held_out_classes:
        reasons["held_out_classes"] = "dataset.json; never a target of training, in no union"
    sides = undeclared_mirror_pairs(raw.class_names, raw.mirror_pairs)
    if sides:
        reasons["mirror_pairs"] = _sides_note(sides)
    return reasons


def _sides_note(pairs: Sequence[tuple[str, str]]) -> str:
    """Names can mislead, so nothing is flipped on their word alone."""
    shown = ", ".join(f"[{left!r}, {right!r}]" for left, right in pairs[:3])
    more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    return (
        f"left/right classes without mirror_pairs ({shown}{more}): declare them under 'iris' in "
        "dataset.json to allow flips"
    )


def _facts_for_planning(raw_set: RawSet, split: Split) -> list[CaseFacts]:
    """Training cases; unlabelled ones where there are no others. Never validate, never test."""
    for names in (split.train, split.unlabelled):
        facts = [fact for fact in raw_set.report.facts if fact.case in set(names)]
        if facts:
            return facts
    raise DataRefused(
        f"set {raw_set.raw.name} has no case to train on",
        file=raw_set.raw.folder,
        found=f"{len(split.validate)} validate and {len(split.test)} test cases",
        fix="leave the set out, or name it as held out",
    )


def _channels(raw: RawDataset, fingerprint: SetFingerprint) -> tuple[tuple[ChannelPlan, ...], str]:
    planned, reasons = [], []
    for channel in raw.channels:
        votes = fingerprint.modality_votes[channel.index]
        declared = {case.modality[channel.index] for case in raw.cases}
        modality: str
        if declared == {"ct"} or declared == {"other"}:
            modality, why = str(next(iter(declared))), "declared by dataset.json"
        elif declared == {None} and len(votes) == 1:
            modality, why = next(iter(votes)), f"guessed alike for {sum(votes.values())} cases"
        else:
            counted = ", ".join(f"{count} {kind}" for kind, count in sorted(votes.items()))
            modality, why = PER_CASE, f"cases differ (guesses: {counted})"
        planned.append(
            ChannelPlan.model_validate(
                {"index": channel.index, "name": channel.name, "modality": modality}
            )
        )
        reasons.append(f"{channel.name}: {modality}, {why}")
    if len(planned) > 1:
        reasons.append("the network sees one channel, so every channel is a view of its own")
    return tuple(planned), "; ".join(reasons)


def _spacing(facts: Sequence[CaseFacts], preset: Preset) -> SpacingChoice:
    references = [
        ReferenceSize(
            spacing_min_mm=min(fact.spacing_zyx_mm),
            extent_mm=fact.extent_mm,
            volumes_mm3={name: c.volume_mm3 for name, c in fact.classes.items()},
        )
        for fact in facts
    ]
    if any(reference.volumes_mm3 for reference in references):
        return spacing_of_references(preset.s0, preset.patch, references)
    return _spacing_without_labels(facts, preset.s0)


def _spacing_without_labels(facts: Sequence[CaseFacts], s0: float) -> SpacingChoice:
    """No structure to fit: s0, but between once and twice the finest edge of the middle case."""
    finest = sorted(min(fact.spacing_zyx_mm) for fact in facts)
    middle = finest[len(finest) // 2]
    spacing = min(max(s0, middle), 2 * middle)
    return SpacingChoice(
        spacing,
        f"no labels: the model's own {s0:g} mm, kept between once and twice the finest edge of the "
        f"middle case ({middle:.4g} mm)",
    )


def _small_class_note(fingerprint: SetFingerprint, spacing_mm: float) -> str:
    """A class may be many small objects, each of them smaller than its volume says."""
    voxels = {n: c.volume_mm3 / spacing_mm**3 for n, c in fingerprint.classes.items() if c.cases}
    if not voxels:
        return ""
    smallest = min(sorted(voxels), key=lambda name: voxels[name])
    if voxels[smallest] >= SMALL_CLASS_VOXELS:
        return ""
    return (
        f"; note: {smallest!r} has only about {voxels[smallest]:.0f} voxels in a case at this "
        f"spacing (fewer than {SMALL_CLASS_VOXELS}, over all of its objects together)"
    )


def _general_reasons(preset: Preset) -> dict[str, str]:
    return {
        "network": preset.reason,
        "patch": f"{preset.patch} voxels of {preset.s0:g} mm: "
        f"a field of view of {preset.patch * preset.s0:g} mm",
        "s0": "spacing at which structures of ordinary size are worked",
        "profile": f"{PROFILE} is the only profile of own models (store version {STORE_VERSION})",
        "training": f"schedule of the preset: {preset.training.steps} steps of "
        f"{preset.training.batch} episodes",
    }


def _portable(folder: Path, workspace: Path) -> str:
    """The folder relative to the workspace where it lies inside, else absolute."""
    whole, base = folder.resolve(), workspace.resolve()
    return (whole.relative_to(base) if whole.is_relative_to(base) else whole).as_posix()
