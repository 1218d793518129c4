"""The product's source as the contract tests read it: modules, and what each imports, when. Parses; imports nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Import:
    """One import: `target` is a dotted name ("torch.nn", "sfn.pairs").

    Attributes:
        when: "top" when the module is imported; "late" inside a function; "typing" under TYPE_CHECKING alone.
    """

    module: str
    target: str
    when: str
    line: int

    def __str__(self) -> str:
        return f"{self.module} line {self.line}: imports {self.target} ({self.when})"


def files(root: Path = ROOT) -> dict[str, Path]:
    """The product's modules by dotted name: "app", "pages.delta", "sfn.pairs", "sfn.ui" for a package's own file."""
    found = [root / "app.py", *sorted(root.glob("pages/*.py")), *sorted(root.glob("sfn/**/*.py"))]
    names = {}
    for path in found:
        parts = path.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _walk(node: ast.AST, when: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _walk(child, "late" if when == "top" else when)
        elif _is_type_checking(child):
            for statement in child.body:
                yield from _walk(ast.Module([statement], []), "typing")
            for statement in child.orelse:
                yield from _walk(ast.Module([statement], []), when)
        else:
            yield from _walk(child, when)


def _targets(node: ast.Import | ast.ImportFrom, module: str, is_package: bool, known: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        package = module.split(".") if is_package else module.split(".")[:-1]
        base = ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))
    for alias in node.names:  # `from sfn import pairs` imports the module sfn.pairs
        whole = f"{base}.{alias.name}"
        yield whole if whole in known else base


def imports(root: Path = ROOT) -> list[Import]:
    """Every import statement of the product, wherever it stands."""
    modules = files(root)
    known = set(modules)
    found = []
    for module, path in modules.items():
        tree = ast.parse(path.read_text(), filename=str(path))
        for node, when in _walk(tree, "top"):
            for target in _targets(node, module, path.name == "__init__.py", known):
                found.append(Import(module, target, when, node.lineno))
    return found
