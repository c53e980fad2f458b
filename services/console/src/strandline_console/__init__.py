"""The command line of Strandline: speaks to the services over the bus, in the operator's role."""

__version__ = "0.1.0"
