"""The errors that faceprior raises on purpose: each message says what was wrong, where, and what to do."""

from __future__ import annotations


class FacePriorError(Exception):
    """Base of every error that faceprior raises on purpose."""


class OptionError(FacePriorError, ValueError):
    """An option is out of its range or contradicts another one."""


class ImageError(FacePriorError, ValueError):
    """A picture cannot be read, or is not one that can be restored."""


class UnreachableError(ImageError):
    """A picture cannot be read for a reason that may pass: a storage that is throttled, a connection that broke."""


class VideoError(FacePriorError, ValueError):
    """A clip cannot be read, or is no video."""


class WeightsError(FacePriorError, ValueError):
    """A prior, a corrector or a checkpoint cannot be found, trusted or understood."""


class DeviceError(FacePriorError, RuntimeError):
    """The device or number format that was asked for does not exist on this machine."""


class DataError(FacePriorError, ValueError):
    """A training set is missing, empty or damaged."""


class OutputError(FacePriorError, OSError):
    """A result cannot be written."""


class CancelledError(FacePriorError):
    """The work was stopped from outside before it was finished."""


def one_line(error: BaseException) -> str:
    """Return what an error of a library says, in one line of at most 300 characters; its class if it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
