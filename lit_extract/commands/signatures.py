"""The settings of classes and functions of this package, read from their source.

So names and help are available before torch and Lightning are imported, which takes ten seconds. Values are left to
jsonargparse, which parses the same signatures and docstrings afterwards.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from docstring_parser import parse

import lit_extract

_PACKAGE = Path(lit_extract.__file__).parent


@dataclass(frozen=True)
class Setting:
    """An argument of a class or a function."""

    help: str
    default: str | None  # as written in the source; None: the setting is required


@dataclass(frozen=True)
class Signature:
    """The arguments of a class or a function."""

    summary: str  # first sentence of the docstring
    settings: Mapping[str, Setting]


@dataclass(frozen=True)
class DatasetNames:
    """The names of a dataset."""

    name: str
    title: str
    data_module: str


@cache
def signature(module: str, name: str) -> Signature:
    """Return the arguments of a class or a function, also if the module imports it."""
    tree = _parsed(module)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return _signature(node, tree)
        if isinstance(node, ast.ImportFrom) and node.module and name in [alias.name for alias in node.names]:
            return signature(node.module, name)
    raise LookupError(f"{module} has no {name}")


def public_classes(endings: Sequence[str]) -> list[str]:
    """Return the names of the public classes of this package that end in one of these endings."""
    names = [*(dataset.data_module for dataset in datasets()), *lit_extract._HOMES]
    return [name for name in names if name[0].isupper() and name.endswith(tuple(endings))]


def class_signature(name: str) -> Signature:
    """Return the arguments of a public class; all data modules of datasets share those of one class."""
    if name in lit_extract._HOMES:
        return signature(lit_extract._HOMES[name], name)
    title = next(dataset.title for dataset in datasets() if dataset.data_module == name)
    return replace(signature("lit_extract.data.images", "ImageDataModule"), summary=f"{title}.")


@cache
def datasets() -> list[DatasetNames]:
    """Return the names of each dataset, from the line ``DATASET = …`` in its file."""
    found = []
    for path in sorted((_PACKAGE / "datasets").glob("*.py")):
        if "\nDATASET = " not in path.read_text(encoding="utf-8"):
            continue
        for node in _parsed(f"lit_extract.datasets.{path.stem}").body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _is_named(node, "DATASET"):
                known = {key.arg: key.value.value for key in node.value.keywords if isinstance(key.value, ast.Constant)}
                found.append(DatasetNames(str(known["name"]), str(known["title"]), str(known["data_module"])))
    return found


def _is_named(node: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)


@cache
def _parsed(module: str) -> ast.Module:
    path = _PACKAGE.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _signature(node: ast.FunctionDef | ast.ClassDef, tree: ast.Module) -> Signature:
    docstring = parse(ast.get_docstring(node) or "")
    meanings = {param.arg_name: " ".join((param.description or "").split()) for param in docstring.params}
    function = node
    if isinstance(node, ast.ClassDef):
        function = next(part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__")
    assert isinstance(function, ast.FunctionDef)
    arguments = [argument.arg for argument in function.args.args if argument.arg != "self"]
    given = [_source_of(default, tree) for default in function.args.defaults]
    defaults = [None] * (len(arguments) - len(given)) + given
    settings = {
        name: Setting(meanings.get(name, ""), default) for name, default in zip(arguments, defaults, strict=True)
    }
    return Signature(docstring.short_description or "", settings)


def _source_of(default: ast.expr, tree: ast.Module) -> str:
    """Return a default as written in the source; for a constant, its value."""
    if not isinstance(default, ast.Name):
        return ast.unparse(default)
    for node in tree.body:
        if isinstance(node, ast.Assign) and _is_named(node, default.id):
            return ast.unparse(node.value)
        if isinstance(node, ast.ImportFrom) and node.module and default.id in [alias.name for alias in node.names]:
            return _source_of(default, _parsed(node.module))
    return default.id
