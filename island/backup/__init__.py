"""Backups of a home folder: one file that `island backup` writes and `island restore` reads."""
