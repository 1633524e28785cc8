"""The files that a client names by paths of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from island.jobs.messages import MAX_FILE
from island.livy.rest import rejected
from island.regular_file import open_regular


@dataclass(frozen=True, slots=True)
class BatchFile:
    """The file of a batch: name and content."""

    name: str
    data: bytes


def read_batch_file(path: str, folders: Sequence[str], home: Path) -> tuple[BatchFile, str]:
    """Read the file of a batch below one of the allowed folders. If it cannot be read, the job fails later, as in Livy.

    Returns the file, and the problem or "". Raises `LivyRefusal` for a path that is not allowed.
    """
    local = _local_path(path)
    real = Path(os.path.realpath(local))
    allowed = any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)
    # The home folder has secrets, and files of all users, also if the administrator allows a folder around it.
    if not allowed or real.is_relative_to(os.path.realpath(home)):
        raise rejected(
            f"requirement failed: Local path {path[:1000]} cannot be added to user sessions.",
            hint="Use `island job submit FILE`, or have the administrator add the folder to jobs.allow_files.",
        )
    try:
        with open_regular(real, follow=False) as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise rejected(f"the file {path[:1000]} has more than {MAX_FILE} bytes, which is the limit.")
        return BatchFile(real.name, data), ""
    except OSError as error:
        return BatchFile(real.name, b""), f"the file {path[:1000]} cannot be read: {error.strerror}"


def check_no_further_files(paths: Sequence[str]) -> None:
    """Refuse further files, with Livy's message: this version does not send them to other islands."""
    if paths:
        _local_path(paths[0])
        raise rejected(
            f"requirement failed: Local path {paths[0][:1000]} cannot be added to user sessions.",
            hint="Pass data as inputs. This version does not send further files to other islands.",
        )


def _local_path(path: str) -> str:
    parts = urlsplit(path)
    if parts.scheme not in ("", "file"):
        raise rejected(f"requirement failed: {path[:1000]} is not a local path; this version reads local files only.")
    local = unquote(parts.path) if parts.scheme == "file" else path
    if not os.path.isabs(local) or "\0" in local:
        raise rejected(f"requirement failed: Path '{path[:1000]}' is not absolute.")
    return local
