"""The errors of the agent."""

from __future__ import annotations

from strandline_contracts.errors import StrandlineError


class AgentError(StrandlineError):
    """The root of what the agent raises."""

    code = "agent.error"


class NotProtected(AgentError):
    """A job for a data source that this server does not protect."""

    code = "agent.not_protected"
    hint = "Protect it first: strandline protect."


class SourceMissing(AgentError):
    """Nothing of a data source's paths exists."""

    code = "agent.source_missing"
    hint = "Is its file system mounted? Otherwise: strandline unprotect."


class ShippingFailed(AgentError):
    """The store has given a job up, or somebody else has taken its place."""

    code = "agent.shipping_failed"


class PipelineStopped(AgentError):
    """A part of a job stopped because another one did."""

    code = "agent.stopped"


class RestoreRefused(AgentError):
    """A restore that would write where it must not, or an order that cannot be carried out."""

    code = "restore.refused"


class HostileReplica(RestoreRefused):
    """A replica whose tree cannot be one: nothing of it is written."""

    code = "restore.hostile"
    hint = "The replica is damaged or forged: strandline verify, and restore another point."


class RestoreFailed(AgentError):
    """A restore that the target's file system stopped (no space, read-only, lost)."""

    code = "restore.failed"
    hint = "Make room or choose another folder; the job can then be started again."
