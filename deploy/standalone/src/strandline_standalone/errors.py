"""The errors of the standalone stack."""

from __future__ import annotations

from strandline_contracts.errors import StrandlineError


class StandaloneError(StrandlineError):
    """The root of what stops a stack from coming up or going down."""

    code = "standalone.error"


class AlreadyUp(StandaloneError):
    """Another supervisor holds the state folder."""

    code = "standalone.already_up"
    hint = "Use it as it is, end it with `strandline down`, or name another folder with --state."


class BadStateFolder(StandaloneError):
    """The state folder cannot be used as it is."""

    code = "standalone.state"


class NoBinary(StandaloneError):
    """A program that the stack needs was not found, or none that is new enough."""

    code = "standalone.no_binary"


class UnitFailed(StandaloneError):
    """A part of the stack did not come up; the message ends with the last lines of its log."""

    code = "standalone.unit_failed"
    hint = "See the folder logs/ of the state folder."
