"""island: one daemon per astronomy site; the daemons form an archipelago without a central server."""

__version__ = "0.1.0"
