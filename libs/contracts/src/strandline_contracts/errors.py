"""The root of every error that Strandline raises on purpose."""

from __future__ import annotations


class StrandlineError(Exception):
    """Something that went wrong in a way that we foresaw.

    Subclasses set `code` (dotted, stable, for scripts), `hint` (what the person can do) and
    `retryable` (whether the same request can succeed later without anybody changing anything).
    """

    code = "strandline.error"
    hint = ""
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if hint is not None:
            self.hint = hint
        if retryable is not None:
            self.retryable = retryable


class BadMessage(StrandlineError):
    """Bytes from the bus or from a store that are not the message they should be."""

    code = "message.bad"
    hint = "A sender and a receiver of different versions, or a forged message: see the log."


class BadName(StrandlineError):
    """A name that cannot be a token of a subject."""

    code = "name.bad"
    hint = "Use 1 to 64 of the characters A-Z a-z 0-9 _ and -."


class BadSignature(StrandlineError):
    """A signed message whose signature, signer or purpose does not hold."""

    code = "signature.bad"
    hint = "Only this site's operator and scheduler keys may sign; see docs/security.md."
