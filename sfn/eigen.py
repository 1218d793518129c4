"""All eigenvalues of a large symmetric matrix, and its first eigenvectors, in a process of its own.

LAPACK neither tells how far it is nor can be stopped; a process can be ended, and gives its memory back. Run as a
script, this file is that process; it imports NumPy alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = 1536  # side up to which it is done in this process: half a second on two cores
_TICK_S = 0.1


class Ended(Exception):
    """The process ended without a result, most likely because there was not enough memory."""


def leading(matrix: np.ndarray, kept: int, *, tick: Callable[[], None] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(n,) eigenvalues, falling, and (n, kept) eigenvectors of the first; both float64.

    matrix: (n, n) symmetric, of which the upper triangle is read. tick: called ten times a second while another
    process works; what it raises ends that. Raises Ended.
    """
    if len(matrix) <= HERE:
        return _leading(matrix, kept)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as found:
        np.save(given, matrix)
        given.seek(0)
        command = [sys.executable, "-I", str(Path(__file__).resolve()), str(kept)]
        process = subprocess.Popen(command, stdin=given, stdout=found, stderr=subprocess.DEVNULL)
        try:
            _wait(process, tick)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise Ended
        found.seek(0)
        return np.load(found), np.load(found)


def _wait(process: subprocess.Popen[bytes], tick: Callable[[], None] | None) -> None:
    while True:
        try:
            process.wait(_TICK_S)
            return
        except subprocess.TimeoutExpired:
            if tick is not None:
                tick()


def _leading(matrix: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(matrix, UPLO="U")
    return values[::-1].copy(), vectors[:, ::-1][:, :kept].copy()


def _work() -> None:
    values, vectors = _leading(np.load(sys.stdin.buffer), int(sys.argv[1]))
    np.save(sys.stdout.buffer, values)
    np.save(sys.stdout.buffer, vectors)


if __name__ == "__main__":
    _work()
