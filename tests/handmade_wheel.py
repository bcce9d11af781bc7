"""Small wheels for tests: real archives that pip accepts, made in a folder that serves as find-links."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

from pico.config import Wheel
from pico.files import sha256_file


def make_wheel(folder: Path, members: Mapping[str, bytes], package: str = "tiny-corpus", version: str = "1.0") -> Wheel:
    """Writes `<folder>/<package>-<version>-py3-none-any.whl` and gives its pin."""
    name = f"{package.replace('-', '_')}-{version}"
    metadata = {
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{name}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}.dist-info/RECORD": b"",
    }
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in {**members, **metadata}.items():
            archive.writestr(zipfile.ZipInfo(member), data, zipfile.ZIP_DEFLATED)
    return Wheel(package=package, version=version, sha256=sha256_file(path))


def wheel_path(folder: Path, wheel: Wheel) -> Path:
    """The file that `make_wheel` wrote."""
    return folder / f"{wheel.package.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
