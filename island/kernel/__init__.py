"""Ids, the bounded codec, ports, loops, databases and telemetry that every concern stands on."""
