"""The application object, its exit statuses, and the options that every command shares."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from csst_dask.errors import ConfigError, RunEnded, describe_error

console = Console()
errors = Console(stderr=True)

DONE, UNEXPECTED, USAGE, REJECTED = 0, 1, 2, 3

OUTAGES = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "EIO", "ESTALE", "EREMOTEIO", "ENODEV", "ENXIO",
        "ETIMEDOUT", "ENOTCONN", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""Errors of the operating system that come from a disk, a file system's server or the network."""


class ExitingGroup(TyperGroup):
    """Turns what ends a command into its exit status and one clear line, after a traceback if nothing foresaw it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            errors.print("interrupted; run the same command again to go on")
            raise typer.Exit(UNEXPECTED) from None
        except RunEnded as error:
            raise _ended(error) from None
        except ConfigError as error:
            _print(f"error: {error}")
            raise typer.Exit(USAGE) from None
        except Exception as error:
            if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):  # the command line's own
                raise
            if is_outage(error):
                raise _ended(RunEnded(f"storage or the network failed: {describe_error(error)}")) from None
            traceback.print_exc()
            _print(f"error: unexpected {describe_error(error)}; please report it with the lines above")
            raise typer.Exit(UNEXPECTED) from None


def is_outage(error: BaseException) -> bool:
    """Whether an error that no run foresaw comes from storage or the network.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    bool
        By what it says, not by being an `OSError`: a folder that is not empty, or a file that is not there, tells of
        a mistake of ours.
    """
    from csst_dask.runners.faults import REMOTE

    if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in OUTAGES:
        return True
    return type(error).__module__.partition(".")[0] in REMOTE


def _print(text: str) -> None:
    errors.print(text, style="red", highlight=False, soft_wrap=True, markup=False)


def _ended(error: RunEnded) -> typer.Exit:
    again = "what is done is kept; run the same command again to go on"
    _print(f"error: {error}; {again}")
    return typer.Exit(UNEXPECTED)


app = typer.Typer(
    cls=ExitingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How crowded is every piece of this sky, and what must the pipeline do about it?\n\n"
    "Exit status: 0 all done, 2 wrong usage or configuration (nothing started), "
    "3 finished but some inputs were rejected or have failed for good, 1 anything unexpected, or chips failed that the "
    "next run tries again.",
)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML configuration.", show_default=False)]
StoreOption = Annotated[str, typer.Option("--store", help="Survey store: a folder or URL.")]
StoresOption = Annotated[list[str], typer.Option("--store", help="Survey store: a folder or URL; several at will.")]
SchedulerOption = Annotated[
    str | None,
    typer.Option("--scheduler", help="Join the cluster of this scheduler, tcp://host:port.", show_default=False),
]
SchedulerFileOption = Annotated[
    Path | None,
    typer.Option("--scheduler-file", help="Join the cluster that wrote this file.", show_default=False),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Worker processes of an own cluster.", show_default="one per core"),
]


def main() -> None:
    """Entry point of ``csst-dask``."""
    from csst_dask.pipeline.stopping import interruptible

    with interruptible():
        app()
