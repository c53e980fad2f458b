"""Strandline on one machine: nats-server, Postgres and every service under one supervisor."""

__version__ = "0.1.0"
