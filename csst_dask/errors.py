"""What can go wrong, sorted by what the run should do about it."""


class CsstDaskError(Exception):
    """Base class. Built with one finished message, so that it survives pickling."""


class ConfigError(CsstDaskError, ValueError):
    """The run cannot be right for any chip: stop before work is submitted."""


class ChipRejected(CsstDaskError):
    """This chip cannot be used, now or on a retry: record why and carry on."""


class RunEnded(CsstDaskError):
    """The run ended before its work was done; what is done is recorded, and the same command goes on from there."""
