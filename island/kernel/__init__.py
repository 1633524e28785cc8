"""Shared by all other packages: ids, the bounded codec, ports, loops, databases, child processes and telemetry."""
