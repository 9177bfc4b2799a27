"""`--set key=value`: typed changes to a plan or preset, checked as if they stood in the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.schema import Record, nearest
from iris_cli.planning.plan import Plan, share_reasons

RecordType = TypeVar("RecordType", bound=Record)
BY_HAND = "set by hand (--set)"


def apply_overrides(plan: Plan, overrides: Sequence[str]) -> Plan:
    """The plan with `key=value` changes, each noted in its reasons.

    A key is a path of names with dots (`training.steps`, `sets.liver.spacing_mm`); a value is JSON,
    or else a text. raises UsageError for an unknown key (with the nearest known one) or a value
    that does not fit.
    """
    changed = override_record(plan, overrides)
    keys = [key for key, _ in map(split_override, overrides)]
    reasons = {**changed.reasons, **dict.fromkeys(keys, BY_HAND)}
    if keys:  # a weight or the temperature changes the shares of all sets
        for key, why in share_reasons(changed.sets, changed.training.size_temperature).items():
            reasons[key] = f"{BY_HAND}: {why}" if key in keys else why
    return changed.model_copy(update={"reasons": reasons})


def override_record(record: RecordType, overrides: Sequence[str]) -> RecordType:
    """Any record with `key=value` changes, validated anew as a whole."""
    if not overrides:
        return record
    content = record.model_dump(mode="json", by_alias=True)
    for text in overrides:
        key, value = split_override(text)
        _assign(content, key, value)
    try:
        return type(record).model_validate_json(json.dumps(content))
    except ValueError as error:
        raise UsageError(
            "a value given with --set does not fit",
            found=_short(error),
            fix=f"correct it in: {' '.join(f'--set {text}' for text in overrides)}",
        ) from None


def split_override(text: str) -> tuple[str, Any]:
    """`key=value` as key and JSON value (anything that is no JSON is a text)."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(
            f"{text!r} is no setting", expected="key=value", fix="for example training.steps=1000"
        )
    try:
        return key.strip(), json.loads(value)
    except json.JSONDecodeError:
        return key.strip(), value


def known_keys(content: Any, prefix: str = "") -> list[str]:
    """Every key path of nested tables, inner tables included."""
    if not isinstance(content, dict):
        return []
    keys = []
    for name, value in content.items():
        keys.append(f"{prefix}{name}")
        keys += known_keys(value, f"{prefix}{name}.")
    return keys


def _assign(content: dict[str, Any], key: str, value: Any) -> None:
    table: Any = content
    parts = _path(content, key)
    for part in parts[:-1]:
        table = table[part]
    old = table[parts[-1]]
    if isinstance(old, dict) and not isinstance(value, dict):
        raise UsageError(
            f"{key!r} is a group of settings",
            expected=", ".join(f"{key}.{name}" for name in list(old)[:8]),
            fix="set one of them",
        )
    table[parts[-1]] = value


def _path(content: dict[str, Any], key: str) -> list[str]:
    """The names that lead to a key; names of sets and classes may hold dots themselves."""
    table: Any = content
    path: list[str] = []
    rest = key
    while rest:
        names = sorted(table, key=len, reverse=True) if isinstance(table, dict) else []
        name = next((n for n in names if rest == n or rest.startswith(n + ".")), None)
        if name is None:
            raise _unknown(content, key)
        path.append(name)
        table, rest = table[name], rest[len(name) + 1 :]
    return path


def _unknown(content: dict[str, Any], key: str) -> UsageError:
    known = known_keys(content)
    guess = nearest(key, known)
    return UsageError(
        f"unknown setting {key!r}",
        fix=f"did you mean {guess!r}?" if guess else "see the keys of plans/default.json",
    )


def _short(error: ValueError) -> str:
    if isinstance(error, DataRefused):
        return str(error.found or error.problem)
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
        for item in errors(include_url=False)
    )
