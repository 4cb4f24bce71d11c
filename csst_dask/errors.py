"""What can go wrong, sorted by what the run should do about it."""

import errno


class CsstDaskError(Exception):
    """Base class. Built with one finished message, so that it survives pickling."""


class ConfigError(CsstDaskError, ValueError):
    """The run cannot be right for any chip: stop before work is submitted."""


class ChipRejected(CsstDaskError):
    """This chip cannot be used, now or on a retry: record why and carry on."""


class RunEnded(CsstDaskError):
    """Raised when a run stops early; finished work is saved and the same command resumes it."""


class DamagedStore(RunEnded):
    """A chunk of a store cannot be read: it was torn, changed or lost."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or a quota on it, is full: only a person can free it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def describe_error(error: BaseException) -> str:
    """One line about an error; says what to do where that is known."""
    text = f"{type(error).__name__}: {error}".strip().rstrip(":")
    return f"{text}; free some space, then run the same command again" if is_full(error) else text
