"""Everything public in sfn is documented and typed: a test fails when something is not."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.contracts.source import files

MODULES = {name: path for name, path in files().items() if path.stat().st_size}
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(
    body: list[ast.stmt], prefix: str = "", owner: ast.ClassDef | None = None
) -> Iterator[tuple[str, Definition, ast.ClassDef | None]]:
    """Public functions and classes, and public methods of public classes; none of __these__."""
    for node in body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        yield prefix + node.name, node, owner
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, f"{prefix}{node.name}.", node)


def methods_of_protocol() -> set[str]:
    """What every engine can do is documented once, at the protocol."""
    tree = ast.parse(MODULES["sfn.engines.base"].read_text())
    engine = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Engine")
    documented = {node.name for node in engine.body if isinstance(node, Definition) and ast.get_docstring(node)}
    assert {"be", "generate", "score", "status", "close"} <= documented
    return documented


def documented_elsewhere(module: str, qualified: str, owner: ast.ClassDef | None) -> bool:
    """Whether the docstring of this name stands at the engines' protocol, or at the class of a protocol's field."""
    name = qualified.rpartition(".")[2]
    if module.startswith("sfn.engines.") and owner and owner.name.endswith("Engine"):
        return owner.name != "Engine" and name in methods_of_protocol()
    return owner is not None and owner.name != "Engine" and any(ast.unparse(base) == "Protocol" for base in owner.bases)


def untyped(node: ast.FunctionDef | ast.AsyncFunctionDef, is_method: bool) -> list[str]:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    if is_method and not any(ast.unparse(d) == "staticmethod" for d in node.decorator_list):
        arguments = arguments[1:]
    arguments += [a for a in (node.args.vararg, node.args.kwarg) if a]
    missing = [a.arg for a in arguments if a.annotation is None]
    return missing + (["return"] if node.returns is None else [])


@pytest.mark.parametrize("name", MODULES)
def test_module_says_what_it_owns(name: str):
    assert ast.get_docstring(ast.parse(MODULES[name].read_text())), f"{MODULES[name]} opens without a docstring"


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("sfn")])
def test_public_names_are_documented_and_typed(name: str):
    wrong = []
    for qualified, node, owner in public(ast.parse(MODULES[name].read_text()).body):
        if not ast.get_docstring(node) and not documented_elsewhere(name, qualified, owner):
            wrong.append(f"{name}.{qualified}, line {node.lineno}: no docstring")
        if not isinstance(node, ast.ClassDef) and (missing := untyped(node, "." in qualified)):
            wrong.append(f"{name}.{qualified}, line {node.lineno}: no type on {', '.join(missing)}")
    assert not wrong, "\n".join(wrong)
