"""The application object, its exit statuses, and the options that every command shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from csst_dask.errors import ConfigError, RunEnded

console = Console()
errors = Console(stderr=True)

DONE, UNEXPECTED, USAGE, REJECTED = 0, 1, 2, 3


class ExitingGroup(TyperGroup):
    """Turns a configuration error into exit status 2 and one clear message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            errors.print("interrupted; run the same command again to go on")
            raise typer.Exit(UNEXPECTED) from None
        except RunEnded as error:
            raise _ended(error) from None
        except ConfigError as error:
            errors.print(f"error: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
            raise typer.Exit(USAGE) from None
        except Exception as error:
            from csst_dask.runners.patience import lost_storage

            if (lost := lost_storage(error)) is None:
                raise
            raise _ended(lost) from None


def _ended(error: RunEnded) -> typer.Exit:
    again = "what is done is kept; run the same command again to go on"
    errors.print(f"error: {error}; {again}", style="red", highlight=False, soft_wrap=True, markup=False)
    return typer.Exit(UNEXPECTED)


app = typer.Typer(
    cls=ExitingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How crowded is every piece of this sky, and what must the pipeline do about it?\n\n"
    "Exit status: 0 all done, 2 wrong usage or configuration (nothing started), "
    "3 finished but some inputs were rejected, 1 anything unexpected.",
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
    app()
