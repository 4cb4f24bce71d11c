"""The rooms of the package: only runners know Dask, and every one of them uses it."""

import ast
from pathlib import Path

import pytest

import csst_dask

ROOT = Path(csst_dask.__file__).parent
DASK = ("dask", "distributed", "dask_cuda", "dask_jobqueue")


def imported(tree: ast.Module) -> set[str]:
    """Names that a module imports from Dask's packages."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(a.asname or a.name).partition(".")[0] for a in node.names if a.name.partition(".")[0] in DASK}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in DASK:
            names |= {alias.asname or alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "runners").glob("*.py")), ids=lambda path: path.stem)
def test_every_runner_uses_dask(path):
    if path.stem == "__init__":
        return
    tree = ast.parse(path.read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert imported(tree) & used, f"{path.name} does nothing with Dask: another layer is its place"


@pytest.mark.parametrize("path", sorted(set(ROOT.rglob("*.py")) - set((ROOT / "runners").rglob("*.py"))), ids=str)
def test_no_other_module_imports_dask(path):
    assert not imported(ast.parse(path.read_text()))
