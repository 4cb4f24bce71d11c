"""How a command ends: what it says of storage, and of a mistake of ours."""

import errno
import os

import pytest
from typer import Typer
from typer.testing import CliRunner

from csst_dask.cli.app import OUTAGES, ExitingGroup, is_outage
from csst_dask.errors import ConfigError, RunEnded

AGAIN = "run the same command again"


def end(error):
    """A command that raises something, run to its end."""
    app = Typer(cls=ExitingGroup, pretty_exceptions_enable=False)

    @app.command()
    def work():
        raise error

    @app.command()
    def other():
        pass

    return CliRunner().invoke(app, ["work"])


def of_the_system(number):
    return OSError(number, os.strerror(number), "survey.zarr")


@pytest.mark.parametrize("number", sorted(OUTAGES))
def test_what_storage_and_networks_raise_is_their_outage(number):
    found = end(of_the_system(number))
    assert found.exit_code == 1
    assert f"storage or the network failed: {type(of_the_system(number)).__name__}" in found.stderr
    assert AGAIN in found.stderr
    assert found.stderr.count("\n") == 1


def test_so_is_a_lost_connection():
    for error in (ConnectionResetError("peer"), TimeoutError("no answer"), BrokenPipeError(errno.EPIPE, "pipe")):
        assert "storage or the network failed" in end(error).stderr


def test_so_is_what_a_library_of_object_storage_raises():
    from botocore.exceptions import EndpointConnectionError

    assert is_outage(EndpointConnectionError(endpoint_url="http://127.0.0.1:9"))


MISTAKES = [
    OSError("text alone"),
    *map(of_the_system, (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST, errno.EINVAL, errno.EBADF, errno.ENOTDIR)),
    KeyError("obs_id"),
    ZeroDivisionError("division by zero"),
]


@pytest.mark.parametrize("error", MISTAKES, ids=repr)
def test_any_other_error_is_shown_as_unexpected_with_its_type_and_message(error):
    found = end(error)
    assert found.exit_code == 1
    last = found.stderr.splitlines()[-1]
    assert last.startswith(f"error: unexpected {type(error).__name__}: {error}")
    assert "storage" not in last
    assert AGAIN not in found.stderr
    assert "Traceback" in found.stderr, "where it happened"


def test_what_is_foreseen_takes_one_line():
    for error, status, words in (
        (ConfigError("map.nside: found 3"), 2, "error: map.nside: found 3\n"),
        (RunEnded("stopped on SIGTERM"), 1, "error: stopped on SIGTERM; what is done is kept"),
        (KeyboardInterrupt(), 1, "interrupted; run the same command again"),
    ):
        found = end(error)
        assert (found.exit_code, found.stderr.count("\n")) == (status, 1)
        assert found.stderr.startswith(words)


def test_usage_errors_are_left_to_the_command_line():
    app = Typer(cls=ExitingGroup)

    @app.command()
    def work(number: int):
        pass

    @app.command()
    def other():
        pass

    found = CliRunner().invoke(app, ["work", "many"])
    assert found.exit_code == 2
    assert "unexpected" not in found.stderr
