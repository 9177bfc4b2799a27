"""The `iris` program: registers the commands and turns errors into messages and exit codes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import typer

from iris_cli import __version__
from iris_cli.commands import (
    convert,
    demo,
    doctor,
    encode_task,
    evaluate,
    info,
    model,
    plan,
    predict,
    preprocess,
    status,
    task,
    train,
)
from iris_cli.commands._output import show_error
from iris_cli.errors import EnvironmentProblem, Interrupted, IrisError
from iris_cli.execution.outcomes import is_out_of_memory
from iris_cli.execution.threads import configure

_EPILOG = (
    "Exit codes: 0 done, 1 defect in iris, 2 usage, 3 some cases failed, 4 the data are refused, "
    "5 environment, 6 training diverged, 75 stopped with everything saved, 130 interrupted. "
    "Add --debug to any command to see the traceback of an error."
)

app = typer.Typer(
    name="iris",
    help="Segment 3-D medical images from examples: encode a task once, predict folders with it.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"iris {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


for _command in (
    demo,
    convert,
    plan,
    preprocess,
    train,
    status,
    encode_task,
    predict,
    evaluate,
    task,
    model,
    info,
    doctor,
):
    _command.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `iris` and leave with its exit code; every known error becomes a message."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    configure(None)
    try:
        app(words, prog_name="iris")
    except IrisError as error:
        _leave(error, debug)
    except KeyboardInterrupt:
        _leave(Interrupted("interrupted from the keyboard"), debug)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        _leave(_out_of_memory() if is_out_of_memory(error) else _defect(error), debug)


def _leave(error: IrisError, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    show_error(error)
    sys.exit(error.exit_code)


def _out_of_memory() -> EnvironmentProblem:
    return EnvironmentProblem(
        "not enough memory", fix="close other programs, or use fewer workers (-j 1)"
    )


def _defect(error: Exception) -> IrisError:
    return IrisError(
        f"a defect in iris: {type(error).__name__}: {error}",
        fix="run the same line with --debug and report what it prints",
    )
