"""Imports flow one way, heavy packages are imported late, Streamlit and SQL stay in their rooms (architecture.md)."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.contracts.source import ROOT, Import, files, imports

# A room may import its own floor and those above it in this list. A file that is new needs a place here and in the
# drawing of docs/architecture.md.
FLOORS = (
    {"errors", "records", "figures", "anatomy", "mapped_memory", "places", "answer_text", "paper_pairs"},
    {"headers", "fingerprints", "readings", "shards", "folders", "hub", "tensors", "computed", "scales", "adapters"},
    {"checkpoints", "folder_writer"},
    {"differences", "tokenizer_differences", "merged_config", "pairs", "facts", "needs", "matrices", "eigen", "pieces"},
    {"delta_kernel", "modality_kernel", "recipes"},
    {"delta", "modality", "model_card", "slices", "delta_map", "spectrum"},
    {"tables", "charts", "paper_figures", "profiles", "pictures", "looks", "raster", "tensor_charts", "head_maps"}
    | {"surgery", "sweeps"},
    {"demo", "engines", "store"},
    {"jobs", "lookups", "abilities", "engine_queue"},
    {"engine_room"},
    {"sweep_room"},
    {"workbench"},
    {"ui"},
    {"pages", "app"},
)
# Rooms that may import less than their floor allows.
NARROW = {
    "errors": set(),
    "records": set(),
    "store": {"errors", "records", "places"},
}
HEAVY = {"torch", "transformers", "vllm", "tokenizers", "numba"}
# Modules that import a heavy package when they are imported; so they are themselves imported inside functions alone.
HEAVY_MODULES = {
    "sfn.delta_kernel",
    "sfn.modality_kernel",
    "sfn.engines.transformers_engine",
    "sfn.engines.draw",
    "sfn.engines.layout",
    "sfn.engines.vllm_worker",
    "sfn.engines.vllm_holding",
    "sfn.engines.vllm_forms",
    "sfn.engines.vllm_places",
    "sfn.demo.train",
    "sfn.demo.evaluate",
    "sfn.demo.tokenizer",
    "sfn.demo.cards",
}


def room(module: str) -> str:
    """ "pairs" of "sfn.pairs", "ui" of "sfn.ui.state", "pages" of "pages.delta", "" of "sfn" itself."""
    parts = module.split(".")
    if parts[0] != "sfn":
        return parts[0]
    return parts[1] if len(parts) > 1 else ""


def floor(name: str) -> int:
    return next((number for number, rooms in enumerate(FLOORS) if name in rooms), len(FLOORS))


def is_ours(target: str) -> bool:
    return target.split(".")[0] in ("sfn", "pages", "app")


OUR_IMPORTS = [i for i in imports() if is_ours(i.target)]
THIRD_PARTY = [i for i in imports() if not is_ours(i.target) and i.when != "typing"]


def upward(found: Import) -> bool:
    """Whether this import goes against the one direction."""
    here, there = room(found.module), room(found.target)
    if here == there or "" in (here, there):  # within a room; and `import sfn`, which imports its rooms late
        return False
    if here in NARROW:
        return there not in NARROW[here]
    return floor(there) > floor(here)


def test_every_module_has_a_place():
    placed = set().union(*FLOORS) | {""}
    homeless = {module for module in files() if room(module) not in placed}
    assert not homeless, f"not on any floor: {sorted(homeless)}; add them to FLOORS and to docs/architecture.md"


def test_the_drawing_shows_every_room():
    drawing = (ROOT / "docs/architecture.md").read_text().split("## Rooms")[1].split("```")[1]
    rooms = {room(module) for module in files()} - {""}
    missing = {name for name in rooms if not re.search(rf"\b{name}(\.py|/)", drawing)}
    assert not missing, f"docs/architecture.md, Rooms: {sorted(missing)} is not in the drawing"


def test_imports_flow_one_way():
    wrong = [str(i) for i in OUR_IMPORTS if upward(i)]
    assert not wrong, "\n".join(wrong)


def test_no_circle_among_modules():
    """A circle works until somebody imports its other end first."""
    needs = {module: {i.target for i in OUR_IMPORTS if i.module == module and i.when == "top"} for module in files()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join((*path, module))}"
        if module not in done:
            for target in needs.get(module, set()):
                visit(target, (*path, module))
            done.add(module)

    for module in needs:
        visit(module, ())


def test_streamlit_stays_in_the_ui():
    wrong = [
        str(i)
        for i in THIRD_PARTY
        if i.target.split(".")[0] == "streamlit" and room(i.module) not in ("app", "pages", "ui")
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_store_speaks_sql():
    wrong = [str(i) for i in THIRD_PARTY if i.target.split(".")[0] == "duckdb" and room(i.module) != "store"]
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_late():
    heavy = [i for i in THIRD_PARTY if i.when == "top" and i.target.split(".")[0] in HEAVY]
    wrong = [str(i) for i in heavy if i.module not in HEAVY_MODULES]
    assert not wrong, "\n".join(wrong)
    wrong = [
        str(i) for i in OUR_IMPORTS if i.target in HEAVY_MODULES and i.when == "top" and i.module not in HEAVY_MODULES
    ]
    assert not wrong, "\n".join(wrong)


def _loaded_by(modules: list[str]) -> set[str]:
    """Top-level packages that a fresh Python has loaded after importing `modules`."""
    program = f"import sys, {', '.join(modules)}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_core_loads_neither_torch_nor_streamlit():
    core = [m for m in files() if room(m) not in ("app", "pages", "ui") and m not in HEAVY_MODULES]
    core = [m for m in core if not m.endswith("__main__")]
    loaded = _loaded_by(core)
    assert "sfn" in loaded
    assert not loaded & (HEAVY | {"streamlit", "duckdb"}), (
        f"loaded: {sorted(loaded & (HEAVY | {'streamlit', 'duckdb'}))}"
    )


@pytest.mark.parametrize("name", ["sfn.ui"])
def test_the_frame_loads_no_torch(name: str):
    """Every module that the first page needs; the shell draws when it is imported, so its imports stand for it."""
    modules = [m for m in files() if (m == name or m.startswith(f"{name}.")) and m != "sfn.ui.shell"]
    loaded = _loaded_by(modules)
    assert "streamlit" in loaded
    assert not loaded & HEAVY, f"loaded: {sorted(loaded & HEAVY)}"
