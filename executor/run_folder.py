"""The folder of a run's workers: in memory where there is any, and its own while it lives."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "apportion-run-"


def claim_folder() -> tuple[Path, int]:
    """Make a folder that is locked while this process lives; the file descriptor is the lock.

    What killed runs left is removed first: they could not, and it takes memory.
    """
    memory = Path("/dev/shm")
    root = memory if memory.exists() else Path(tempfile.gettempdir())
    for folder in root.glob(f"{PREFIX}*"):
        _remove_if_left(folder)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def release_folder(folder: Path, lock: int) -> None:
    """Remove the folder with its files, and its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder whose run is dead; one without files may be a run's about to lock it."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:  # gone meanwhile, or another user's
        return
    try:
        if any(folder.iterdir()):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its run lives, or another removes it
        pass
    finally:
        os.close(lock)
