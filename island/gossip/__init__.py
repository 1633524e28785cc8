"""Signed logs, one per island, and their exchange between islands."""
