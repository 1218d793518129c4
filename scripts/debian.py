"""What tests need from the system and pip cannot bring: Chromium, what drives it, and libnuma for vLLM on a CPU.

Takes it from Debian's packages where they are missing and this user may install them; says what to do otherwise.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys

BROWSERS = ("chromium", "chromium-browser")
LIBRARIES = {"libnuma.so.1": "libnuma1", "libatomic.so.1": "libatomic1"}  # vLLM's CPU build; playwright's driver


def missing() -> list[str]:
    """Debian's names of the packages that are not there."""
    packages = [] if any(shutil.which(name) for name in BROWSERS) else ["chromium"]
    for library, package in LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            packages.append(package)
    return packages


def administrator() -> list[str] | None:
    """Words to put before a command that needs root: none for root, sudo where it asks nothing, None where neither."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], stderr=subprocess.DEVNULL).returncode == 0:
        return [sudo, "-n"]
    return None


def main() -> None:
    packages = missing()
    if not packages:
        return
    by_hand = f"`apt-get install {' '.join(packages)}` as root, or your system's counterpart"
    before = administrator()
    if before is None or not shutil.which("apt-get"):
        sys.exit(f"The tests need {' and '.join(packages)}, and this user cannot install it: {by_hand}, then again.")
    print(f"Installing {' and '.join(packages)} for the tests.", flush=True)
    apt = [*before, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    subprocess.run([*apt, "update"])  # a stale list may still do; the installation decides
    done = subprocess.run([*apt, "install", "--yes", "--no-install-recommends", *packages], stdout=subprocess.DEVNULL)
    if done.returncode or missing():
        sys.exit(f"apt-get could not install {' and '.join(packages)}; its message stands above. By hand: {by_hand}.")


if __name__ == "__main__":
    main()
