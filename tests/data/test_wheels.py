"""Pinned wheels: what is downloaded is what was pinned, whatever else happens; archives cannot harm."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from handmade_wheel import make_wheel, wheel_path
from hypothesis import given
from hypothesis import strategies as st

from pico.config import Wheel
from pico.data.sources import wheels
from pico.errors import PicoError
from pico.files import sha256_file

MARK = "imported-or-installed"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip downloads from, and from nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def pips_called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Records the commands that are run, and runs them."""
    calls, run = [], subprocess.run

    def recording(command: list[str], **options):
        calls.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", recording)
    return calls


def test_a_wheel_is_downloaded_once_through_the_users_pip(index: Path, tmp_path: Path, monkeypatch) -> None:
    wheel = make_wheel(index, {"tiny_corpus/__init__.py": f"open({str(tmp_path / MARK)!r}, 'w')".encode()})
    calls = pips_called(monkeypatch)
    folder = tmp_path / "downloads"
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: wheels.download(wheel, folder), range(4)))
    assert paths == {folder / f"{wheel.sha256}.whl"}
    assert sha256_file(paths.pop()) == wheel.sha256
    assert len(calls) == 1
    assert not list(folder.glob("*.partial"))
    assert not list(folder.glob(".*.partial"))
    assert not (tmp_path / MARK).exists(), "the wheel was run"


def test_a_torn_download_is_fetched_again(index: Path, tmp_path: Path) -> None:
    wheel = make_wheel(index, {"a.txt": b"text"})
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / f"{wheel.sha256}.whl").write_bytes(b"PK torn")
    assert sha256_file(wheels.download(wheel, folder)) == wheel.sha256


def test_another_file_than_the_pinned_one_is_refused_by_name_and_hashes(index: Path, tmp_path: Path) -> None:
    real = make_wheel(index, {"a.txt": b"altered"})
    wheel = Wheel(package=real.package, version=real.version, sha256="0" * 64)
    with pytest.raises(PicoError) as raised:
        wheels.download(wheel, tmp_path / "downloads")
    assert not isinstance(raised.value, wheels.DownloadError), "another try gives the same file"
    for part in ("tiny_corpus-1.0-py3-none-any.whl", "0" * 64, real.sha256):
        assert part in str(raised.value)
    assert not list((tmp_path / "downloads").glob("*.whl"))


def test_what_the_index_lacks_is_a_download_error_with_what_pip_said(index: Path, tmp_path: Path) -> None:
    with pytest.raises(wheels.DownloadError, match="No matching distribution found for absent-thing==9"):
        wheels.download(Wheel(package="absent-thing", version="9", sha256="0" * 64), tmp_path)


def test_a_killed_download_neither_blocks_nor_spoils_the_next(index: Path, tmp_path: Path) -> None:
    wheel = make_wheel(index, {"a.txt": b"text"})
    folder = tmp_path / "downloads"
    # A process that takes the lock and hangs in its pip, as on a dead connection.
    program = (
        "import time; from pathlib import Path; from pico.config import Wheel; from pico.data.sources import wheels\n"
        "def hang(wheel, folder):\n"
        "    (folder / 'half.whl').write_bytes(b'half'); print('hanging', flush=True); time.sleep(600)\n"
        "wheels._pip_download = hang\n"
        f"wheels.download(Wheel(package='tiny-corpus', version='1.0', sha256={wheel.sha256!r}), Path({str(folder)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "hanging\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    start = time.monotonic()
    assert sha256_file(wheels.download(wheel, folder)) == wheel.sha256
    assert time.monotonic() - start < 60
    assert not list(folder.glob(".*.partial"))


def test_members_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"p/b.txt": b"B", "p/a.txt": b"A", "p/deep/c.txt": b"C", "p/d.py": b"D"})
    with wheels.Archive(wheel_path(tmp_path, wheel)) as archive:
        assert archive.members("p/*.txt") == ["p/a.txt", "p/b.txt"]
        assert archive.members("p/**/*.txt") == ["p/a.txt", "p/b.txt", "p/deep/c.txt"]
        assert archive.read("p/b.txt") == b"B"
        with pytest.raises(PicoError, match=r"has no member 'p/z\.txt'"):
            archive.read("p/z.txt")


@pytest.mark.parametrize("name", ["../outside.txt", "/absolute.txt", "a/../../b.txt", "C:/windows.txt", "..\\back.txt"])
def test_a_member_whose_path_leaves_the_archive_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "text")
    with wheels.Archive(path) as archive, pytest.raises(PicoError, match="leaves the archive") as raised:
        archive.members("**")
    assert name in str(raised.value) or repr(name) in str(raised.value)


def test_a_zip_bomb_is_refused_by_name_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("big.txt", "w") as member:
        for _ in range(80):
            member.write(bytes(2**20))
    with wheels.Archive(path) as archive, pytest.raises(PicoError, match=r"'big\.txt'.*zip bomb"):
        archive.read("big.txt")


def test_many_members_that_are_sound_by_themselves_are_a_bomb_together(tmp_path: Path) -> None:
    path = tmp_path / "bomb.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.txt", bytes(2**24))
    with wheels.Archive(path) as archive:
        with pytest.raises(PicoError, match=r"refused its 5 members that match '\*\.txt'.*zip bomb"):
            archive.members("*.txt")
        assert archive.members("[0-2].txt") == ["0.txt", "1.txt", "2.txt"]


def test_a_member_that_is_a_link_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "link.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("p/link.txt")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with wheels.Archive(path) as archive, pytest.raises(PicoError, match=r"'p/link\.txt': it is a link"):
        archive.members("**")


def test_a_member_that_is_longer_than_it_says_is_cut_off_and_named(tmp_path: Path) -> None:
    path = tmp_path / "liar.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"x" * 10_000_000)
    small = (1000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace((10_000_000).to_bytes(4, "little"), small))
    with wheels.Archive(path) as archive:
        assert archive.size("a.txt") == 1000
        with pytest.raises(PicoError, match=r"a\.txt cannot be read: Bad CRC"):
            archive.read("a.txt")


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    path = tmp_path / "torn.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.txt", "the text itself")
    path.write_bytes(path.read_bytes().replace(b"itself", b"ITSELF"))
    with wheels.Archive(path) as archive, pytest.raises(PicoError, match=r"a\.txt cannot be read: Bad CRC"):
        archive.read("a.txt")
    path.write_bytes(b"no zip at all")
    with pytest.raises(PicoError, match="is not a wheel"):
        wheels.Archive(path)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("**", ["a", "a/b/c.txt"], []),
        ("*.txt", ["a.txt", ".txt"], ["a/b.txt", "a.txtx"]),
        ("**/*.md", ["a.md", "x/y/a.md"], ["a.mdx"]),
        ("x/**/y", ["x/y", "x/a/b/y"], ["xy", "x/ay"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
        ("w_[A-C].json", ["w_B.json"], ["w_D.json", "w_[A-C].json"]),
        ("[!a]b", ["cb"], ["ab", "/b"]),
        ("a+(b).txt", ["a+(b).txt"], ["aab.txt"]),
    ],
)
def test_globs(pattern: str, matching: list[str], other: list[str]) -> None:
    matcher = wheels.glob_matcher(pattern)
    assert [name for name in [*matching, *other] if matcher.fullmatch(name)] == matching


@given(st.text(st.characters(exclude_characters="*?[", exclude_categories=["Cs"]), min_size=1))
def test_a_pattern_without_wildcards_matches_itself_alone(name: str) -> None:
    if name.startswith("/") or ".." in name.split("/"):
        with pytest.raises(PicoError, match="leaves its folder"):
            wheels.glob_matcher(name)
    else:
        assert wheels.glob_matcher(name).fullmatch(name)
        assert not wheels.glob_matcher(name).fullmatch(name + "x")
