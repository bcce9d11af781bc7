"""A Ray to work on for the length of a `with`: the user's cluster, the lab's head, or one of the stage's own."""

import hashlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.lab.environment import live_ray, prepare, read_record
from pico.errors import PicoError

OBJECT_STORE_BYTES = 512 * 2**20
"""Shared memory of a local Ray: tasks pass paths and small results, not corpora."""


@contextmanager
def ray_session(root: Path) -> Iterator[None]:
    """Connects to RAY_ADDRESS if set, else to the lab's head if it is up, else starts a Ray of its own.

    On leaving, disconnects; a Ray of its own is shut down and its folder removed. Raises PicoError where the Ray that
    RAY_ADDRESS or the lab names refuses. Nested sessions share the outer one's Ray.
    """
    prepare(root)
    import ray

    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    address = os.environ.get("RAY_ADDRESS") or live_ray(read_record(root))
    folder = None if address else ray_folder(root, str(os.getpid()))
    if folder:
        _sweep(folder)
    try:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
        if not address:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder),
                **quiet,
            )
        else:
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
                mend = "check RAY_ADDRESS, or unset it" if "RAY_ADDRESS" in os.environ else "pico down, then pico up"
                raise PicoError(f"cannot connect to Ray: {error}", where=address, mend=mend) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would leave before workers can
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes the folders of this clone's stages that were killed; Ray's processes end with theirs by themselves."""
    import psutil

    for other in folder.parent.glob(f"{folder.name.split('-')[0]}-[0-9]*"):
        if not psutil.pid_exists(int(other.name.split("-")[1])):
            shutil.rmtree(other, ignore_errors=True)


def ray_folder(root: Path, name: str) -> Path:
    """Makes the private folder of a Ray session, `<temporary folder>/pico-<user>/<clone>-<name>`, if there is none.

    It is not in the clone, because the sockets in it are limited to 107 characters of path. Raises PicoError where the
    folder belongs to somebody else or the temporary folder is too deep.
    """
    parent = Path(tempfile.gettempdir()) / f"pico-{os.getuid()}"
    folder = parent / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]}-{name}"
    if len(str(folder)) > 40:  # Ray appends up to 67 characters: session_<date>_<time>_<microseconds>_<pid>/sockets/...
        raise PicoError(
            f"the temporary folder's path is too long for Ray's sockets: {folder}", mend="set TMPDIR to a shorter path"
        )
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = parent.lstat()
        if owner.st_uid != os.getuid() or parent.is_symlink() or owner.st_mode & 0o077:
            raise PicoError(f"{parent} can be read or written by others", mend=f"remove it, or: chmod 700 {parent}")
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise PicoError(
            f"cannot make {folder}: {error.strerror}", mend="set TMPDIR to a folder that you own"
        ) from error
    return folder
