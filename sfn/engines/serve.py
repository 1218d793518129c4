"""Starts a vLLM server on this machine for an SfN on another one, which finds it by SFN_VLLM_URL:

    python -m sfn.engines.serve A_FOLDER B_FOLDER [--recipe RECIPE] [options of `vllm serve`]

The process becomes vLLM's API server, with the options of SfN's own servers; those given here win over them. It listens
on 127.0.0.1:8000 unless --host and --port say otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sfn import checkpoints, pairs, recipes
from sfn.engines import available, fit, hardware, vllm_command, vllm_remote
from sfn.errors import EngineError, SfnError


def main(words: Sequence[str]) -> None:
    """Become the server; returns only by an error. Raises SfnError for folders, a recipe or options that do not do."""
    parser = argparse.ArgumentParser(
        prog="python -m sfn.engines.serve",
        description="Start a vLLM server for an SfN on another machine. Further options are those of `vllm serve`.",
        allow_abbrev=False,
    )
    parser.add_argument("a", help="folder of A on this machine")
    parser.add_argument("b", help="folder of B on this machine")
    parser.add_argument("--recipe", default="", help="weights to start with, as on the Merge page; A by default")
    own, given = parser.parse_known_args(words)
    _exec(*command(own.a, own.b, own.recipe, given))


def command(a: str, b: str, recipe: str, given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of the server."""
    os.environ.pop(vllm_remote.URL, None)  # where this machine's own SfN would look for vLLM says nothing here
    vllm = next(backend for backend in available() if backend.name == "vllm")
    if not vllm.ok:
        raise EngineError(vllm.reason)
    fit.check()
    pair = pairs.compare(checkpoints.open(a), checkpoints.open(b))
    plan = recipes.resolve(recipes.parse(recipe), pair)
    given = [*vllm_command.given_options(), *given]
    host = vllm_command.option(given, "--host") or "127.0.0.1"
    if vllm_command.option(given, "--uds") is None:
        _check_host(host)
        given = ["--host", host, *given]
    device = hardware.device_for("vllm")
    dtype = hardware.dtype_for("vllm", pair, device)
    line = [*vllm_command.COMMAND, *vllm_command.arguments(pair, plan, device=device, dtype=dtype, given=given)]
    environment = vllm_command.environment(given)
    if key := os.environ.get(vllm_remote.KEY, ""):
        environment["VLLM_API_KEY"] = key
    return line, environment


def _check_host(host: str) -> None:
    if not vllm_remote.is_loopback(host) and not vllm_remote.unguarded():
        raise EngineError(
            f"--host {host} would open vLLM's development endpoints to the network. They have no access control, not "
            "even with a key: whoever reaches them owns the server. Leave --host out and reach it through a tunnel "
            "(ssh -N -L 8000:127.0.0.1:8000 THIS_MACHINE), or, in a network that you trust, set "
            f"{vllm_remote.UNGUARDED}=1."
        )


def _exec(line: list[str], environment: dict[str, str]) -> None:
    sys.stdout.flush()
    os.execve(line[0], line, os.environ | environment)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SfnError as error:
        sys.exit(str(error))
