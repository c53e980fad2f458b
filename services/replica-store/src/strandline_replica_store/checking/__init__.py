"""Whether all that is stored is still what was sent: verify on command, scrub by itself."""
