"""What to do about a damaged database of a home folder: one advice for the daemon, the commands and doctor."""

from __future__ import annotations


def repair_advice(database: str) -> str:
    """Return what to do if the content of a database, given by its file name, is damaged."""
    if database == "gossip.db":
        return "Check the disk. Then stop the daemon and delete gossip.db*; it is rebuilt from other islands."
    if database == "chunks.db":
        return "Check the disk. Then stop the daemon and delete chunks.db* and replicas, which are a cache."
    return (
        "Check the disk, stop the daemon, and restore a backup with `island restore`:"
        " see 'Restore' in docs/administrator.md of the repository."
    )
