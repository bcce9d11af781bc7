"""Writes are whole or absent."""

import errno
import os
import subprocess
import sys

import duckdb
import pytest
from safetensors import SafetensorError

from pico import files
from pico.errors import PicoError


def test_equal_values_have_equal_bytes_and_fingerprints():
    assert files.canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert files.fingerprint({"a": 1, "b": 2}) == files.fingerprint({"b": 2, "a": 1})
    assert files.fingerprint({"a": 1}) != files.fingerprint({"a": 2})


def test_nan_never_reaches_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json({"loss": float("nan")})


def test_a_failed_publication_leaves_the_former_one(tmp_path):
    target = tmp_path / "out"
    with files.publishing(target) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(ZeroDivisionError), files.publishing(target) as folder:
        (folder / "a").write_text(f"half of the sec{1 / 0}")
    assert (target / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_does_not_reach_the_out(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from pico.files import publishing\n"
        "with publishing(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'stale').write_text('x'); os.kill(os.getpid(), 9)\n"
    )
    target = tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", code, target], check=False).returncode == -9
    assert not target.exists()
    with files.publishing(target) as folder:
        (folder / "fresh").write_text("y")
    assert [path.name for path in target.iterdir()] == ["fresh"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(PicoError, match=r"no space left while writing .*metrics\.json"):
        files.write_json(tmp_path / "metrics.json", {"a": 1})
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        duckdb.IOException('IO Error: Could not write file "sort.tmp": No space left on device'),
    ],
)
def test_a_full_disk_is_named_whatever_library_met_it(tmp_path, error):
    with pytest.raises(PicoError, match=r"no space left while writing .*out"), files.full_disk_named(tmp_path / "out"):
        raise error
    with pytest.raises(ValueError, match="other"), files.full_disk_named(tmp_path / "out"):
        raise ValueError("other")


def test_reading_a_missing_or_broken_file_names_it(tmp_path):
    with pytest.raises(PicoError, match=r"x\.json does not exist"):
        files.read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(PicoError, match=r"x\.json is not valid JSON"):
        files.read_json(tmp_path / "x.json")
