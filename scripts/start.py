"""Start the app on 127.0.0.1: `.venv/bin/python scripts/start.py [PORT]`. Installs nothing; install.py does."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"


def port_number(text: str) -> int:
    """`text` as a port that a user may open; ends with a sentence where it is none."""
    if text.isascii() and text.isdigit() and 1024 <= int(text) <= 65535:
        return int(text)
    sys.exit(f"PORT is {text!r}; it must be a number from 1024 to 65535, as in `make app PORT=8502`.")


def refuse_taken(port: int) -> None:
    """End with a sentence where something listens on `port` already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just freed is free
        try:
            probe.bind((HOST, port))
        except OSError:
            sys.exit(
                f"Port {port} on {HOST} is taken, perhaps by SfN itself: open http://{HOST}:{port}, "
                f"or start beside it with `make app PORT={port + 1}`."
            )


def main() -> None:
    port = port_number(sys.argv[1] if len(sys.argv) > 1 else "8501")
    refuse_taken(port)
    print(f"Stethoscope for Networks: http://{HOST}:{port}   (Ctrl-C ends it)", flush=True)
    os.chdir(ROOT)
    settings = {
        "server.address": HOST,
        "server.port": str(port),
        "server.headless": "true",
        "browser.gatherUsageStats": "false",
    }
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    # In place of this process: what ends `make app` ends the app, and nothing stands between.
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", "app.py", *options])


if __name__ == "__main__":
    main()
