"""Checks of an island from outside: its configuration, its home folder, this machine, and its surroundings."""
