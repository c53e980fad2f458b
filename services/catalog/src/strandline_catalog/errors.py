"""The errors of the catalog."""

from __future__ import annotations

from strandline_contracts.errors import StrandlineError


class CatalogFault(StrandlineError):
    """The root of what the catalog raises."""

    code = "catalog.fault"


class DatabaseDown(CatalogFault):
    """Postgres does not answer, or not as it should; the catalog comes back when it does."""

    code = "catalog.database_down"
    hint = "Nothing is lost: the catalog is a projection. It comes back with its Postgres."
    retryable = True


class BadMigration(CatalogFault):
    """The database has another history of migrations than this catalog."""

    code = "catalog.bad_migration"
    hint = "Drop the schema 'strandline' of the catalog's database: the catalog fills it anew."


class BadDsn(CatalogFault):
    """The file with the database's address is missing, open to others, or empty."""

    code = "catalog.bad_dsn"
    hint = "The file belongs to the catalog's user, has mode 0600 and holds one line."
