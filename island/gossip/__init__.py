"""Signed logs, one per island, and how they spread."""
