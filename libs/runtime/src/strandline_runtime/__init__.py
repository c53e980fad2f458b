"""What every service of Strandline runs on.

The bus (bus, consume), jobs as their target keeps them (journal, outbox, targets), and the shell
around a process (settings, logs, metrics, service). Services import it; it imports contracts alone.
"""
