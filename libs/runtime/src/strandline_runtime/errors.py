"""The errors of the runtime."""

from __future__ import annotations

from strandline_contracts.errors import StrandlineError
from strandline_contracts.queries import Refused


class RuntimeFault(StrandlineError):
    """The root of what the runtime raises."""

    code = "runtime.fault"


class SettingsError(RuntimeFault):
    """A setting that is missing, unknown, or of the wrong kind; the message names it."""

    code = "settings.bad"
    hint = "See the settings in docs/standalone.md."


class KeyFileError(RuntimeFault):
    """A file of a secret key that is missing, open to others, or no key."""

    code = "keys.bad"
    hint = "A key file belongs to the service's user and has mode 0600."


class BusError(RuntimeFault):
    """The bus did not take or deliver something.

    Codes: bus.down, bus.timeout, bus.unreachable (no stream listens), bus.full (a stream's limit is
    reached), bus.refused (another error of JetStream); not retryable: bus.conflict (somebody else
    wrote first), bus.too_large.
    """

    code = "bus.error"
    hint = "The bus comes back by itself or its operator must see to it: strandline status."
    retryable = True


class Unreachable(BusError):
    """Nobody answered a call in time, or nobody is there to answer."""

    code = "bus.unreachable"
    hint = "The service that should answer is down or busy: strandline status."


class NobodyListens(Unreachable):
    """Nobody is there to answer: the question reached nobody."""


class RemoteRefused(RuntimeFault):
    """The other side refused a call: its own code, message, hint and retryable."""

    code = "remote.refused"

    @classmethod
    def of(cls, refused: Refused) -> RemoteRefused:
        return cls(
            refused.message, code=refused.code, hint=refused.hint, retryable=refused.retryable
        )
