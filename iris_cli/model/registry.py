"""Where models lie and what they are called: those that ship, and the user's own registry.

The registry is a folder with one model folder for each name, and the file `default`, which names
the model that is used where none is asked for. It lies in the user's data folder:
`$XDG_DATA_HOME/iris/models` where that is set, else `~/.local/share/iris/models` (Linux),
`~/Library/Application Support/iris/models` (macOS) or `%LOCALAPPDATA%\\iris\\models` (Windows).
Light: no torch.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from iris_cli import weights
from iris_cli.errors import EnvironmentProblem, IrisError, UsageError
from iris_cli.files.archive import safe_relative_path
from iris_cli.files.publish import publish_text
from iris_cli.files.schema import nearest
from iris_cli.model.card import CARD_FILE

WEIGHTS_FILE = "weights.safetensors"
DEFAULT_FILE = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_MAX_NAME_FILE = 1000


def registry_folder() -> Path:
    """The registry of this user; it need not exist."""
    # By its specification a relative XDG_DATA_HOME counts as not set.
    chosen = Path(os.environ.get("XDG_DATA_HOME", ""))
    if chosen.is_absolute():
        return chosen / "iris" / "models"
    home = Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = home / ".local" / "share"
    return base / "iris" / "models"


def shipped_models() -> tuple[str, ...]:
    """Names of the models that come with iris."""
    return _names_in(_shipped_folder())


def registered_models(registry: Path | None = None) -> tuple[str, ...]:
    """Names of the models in a registry, by default the user's."""
    return tuple(name for name in _names_in(registry or registry_folder()) if _is_name(name))


def find_model(name_or_path: str | Path | None, registry: Path | None = None) -> Path:
    """Folder or file of a model; None means the default.

    A path is taken before a name, and a shipped model before a registered one.
    raises UsageError where there is none, EnvironmentProblem where the default has gone.
    """
    if name_or_path is None:
        return _folder_of_default(registry or registry_folder())
    path = Path(name_or_path)
    if path.is_file() or (path / CARD_FILE).is_file():
        return path
    found = find_by_name(str(name_or_path), registry)
    if found is not None:
        return found
    known = [*shipped_models(), *registered_models(registry)]
    guess = nearest(str(name_or_path), known)
    raise UsageError(
        f"there is no model {str(name_or_path)!r}",
        found="a folder without model.json" if path.is_dir() else "no such file or folder",
        expected=f"a model folder, a .safetensors file, or one of: {', '.join(known) or 'none'}",
        fix=f"did you mean {guess!r}?" if guess else "check the path, or see `iris model list`",
    )


def find_by_name(name: str, registry: Path | None = None) -> Path | None:
    """The folder of a shipped or registered model; None where no such name is known."""
    if name in shipped_models():
        return _shipped_folder() / name
    if name in registered_models(registry):
        return (registry or registry_folder()) / name
    return None


def default_name(registry: Path | None = None) -> str:
    """Name of the model that is used where none is asked for; it may have gone."""
    chosen = _read_name((registry or registry_folder()) / DEFAULT_FILE)
    return chosen or _read_name(_shipped_folder() / DEFAULT_FILE)


def choose_default(name: str, registry: Path | None = None) -> Path:
    """Make a shipped or registered model the default; returns its folder.

    raises UsageError where no model has this name.
    """
    found = find_by_name(name, registry)
    if found is None:
        known = [*shipped_models(), *registered_models(registry)]
        guess = nearest(name, known)
        raise UsageError(
            f"there is no model {name!r} to make the default",
            expected=f"one of: {', '.join(known) or 'none'}",
            fix=f"did you mean {guess!r}?" if guess else "import it first: iris model import",
        )
    publish_text((registry or registry_folder()) / DEFAULT_FILE, name + "\n")
    return found


def place_for(name: str, registry: Path | None = None) -> Path:
    """The folder that a model of this name has, or would have, in a registry.

    raises UsageError for a name that could leave the folder or that a shipped model has.
    """
    if not _is_name(name):
        raise UsageError(
            "not a name for a model",
            found=repr(name[:200]),
            expected="letters, digits, '.', '_' and '-', beginning with a letter or digit, at "
            f"most 100; not {DEFAULT_FILE!r}",
            fix="choose another --name",
        )
    if name in shipped_models():
        raise UsageError(f"{name!r} is a model that ships with iris", fix="choose another --name")
    return (registry or registry_folder()) / name


def _is_name(name: str) -> bool:
    if _NAME.fullmatch(name) is None or name.lower() == DEFAULT_FILE or name.endswith("."):
        return False
    try:
        safe_relative_path(name)
    except IrisError:  # the name of a device
        return False
    return True


def _names_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.parent.name for entry in folder.glob(f"*/{CARD_FILE}")))


def _folder_of_default(registry: Path) -> Path:
    chosen = _read_name(registry / DEFAULT_FILE)
    if not chosen:
        return _shipped_default()
    found = find_by_name(chosen, registry)
    if found is None:
        raise EnvironmentProblem(
            "the model that was made the default is not there any more",
            file=registry / DEFAULT_FILE,
            found=repr(chosen),
            expected="the name of a shipped or registered model",
            fix="choose another one with `iris model use NAME`",
        )
    return found


def _shipped_default() -> Path:
    pointer = _shipped_folder() / DEFAULT_FILE
    name = _read_name(pointer)
    if name in shipped_models():
        return _shipped_folder() / name
    raise EnvironmentProblem(
        "the model that ships with iris is missing from this installation",
        file=pointer,
        found=f"{name!r}" if name else "no such file",
        expected=f"the name of a folder beside it with {CARD_FILE} and {WEIGHTS_FILE}",
        fix="install iris again, or name a model: a folder made by `iris train`, or a file",
    )


def _read_name(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(_MAX_NAME_FILE).strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise EnvironmentProblem(
            "the name of the default model cannot be read",
            file=path,
            found=error.strerror,
            fix="make it readable for your user, or name a model with --model",
        ) from error


def _shipped_folder() -> Path:
    return Path(weights.__file__).parent
