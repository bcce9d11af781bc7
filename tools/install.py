"""Makes .venv from requirements.lock; run by make with the system's Python (3.11 or newer), standard library only.

uv does the work because it is ten times faster than pip. It does not read pip's configuration, so the user's index,
mirrors, find-links and certificate (from pip's files or PIP_* variables) are handed to it here.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
UV_VERSION = "0.13.9"
# pip's option -> uv's variable for the same thing
HANDED_ON = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}


def pip_settings(python: Path) -> dict[str, str]:
    """Returns pip's configuration by option name; later lines (environment over files) win, as they do for pip."""
    listed = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            settings[key.rsplit(".", 1)[-1]] = value.strip().strip("'\"")
    return settings


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """The environment for uv: the user's own UV_* settings stand; pip's fill in what they leave open."""
    environment = dict(os.environ)
    for option, variable in HANDED_ON.items():
        if option in settings and variable not in environment:
            values = settings[option].replace("\\n", " ").split()
            # uv takes a comma between find-links and a space between indexes; pip a space for both.
            environment[variable] = ("," if option == "find-links" else " ").join(values)
    # As pip does: every index is looked at, and the best version of them all is taken.
    environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    if "default-timeout" in settings or "timeout" in settings:
        environment.setdefault("UV_HTTP_TIMEOUT", settings.get("timeout", settings.get("default-timeout", "60")))
    return environment


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(f"pico needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 ...")
    python = VENV / "bin" / "python"
    if not python.exists():
        print("making .venv", flush=True)
        venv.create(VENV, with_pip=True, clear=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"uv=={UV_VERSION}"], check=True)
    environment = uv_environment(pip_settings(python)) | {"VIRTUAL_ENV": str(VENV)}
    uv = [str(VENV / "bin" / "uv"), "pip"]
    print("installing requirements.lock (a minute or two; a later call installs nothing)", flush=True)
    subprocess.run(
        [*uv, "install", "--compile-bytecode", "-r", "requirements.lock"], cwd=ROOT, env=environment, check=True
    )
    subprocess.run([*uv, "install", "--quiet", "--no-deps", "-e", "."], cwd=ROOT, env=environment, check=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"installation stopped: `{' '.join(map(str, error.cmd))}` failed; its message is above")
