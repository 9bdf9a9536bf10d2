"""What a trainer's source defines and imports, read without executing it."""

from __future__ import annotations

import ast
from pathlib import Path

from ddl_plugin.errors import UserError


def parsed(path: Path) -> ast.Module:
    """The file as Python; `UserError` where it is not there, or is none."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise UserError(f"host: expected {path.name} in {path.parent}, found none") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"host: {path} cannot be read as Python: {error}") from error


def defined(tree: ast.Module) -> set[str]:
    """Names of the functions and classes of a module's top level, and what it imports there."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


def imported(tree: ast.Module, module: str) -> set[str]:
    """Names that are imported from `module`, also within functions; '*': all."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module)
    return {alias.name for node in nodes for alias in node.names}


def require(path: Path, names: set[str], name: str, how: str) -> None:
    """`UserError` that says what was looked for, unless `name` is one of `names`."""
    if name not in names and "*" not in names:
        raise UserError(f"host: {path}: looked for {name}, {how} there, and did not find it")


def require_defined(path: Path, name: str) -> None:
    require(path, defined(parsed(path)), name, "defined")
