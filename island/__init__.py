"""island: one daemon per astronomy site, and the archipelago they form without a centre."""

__version__ = "0.1.0"
