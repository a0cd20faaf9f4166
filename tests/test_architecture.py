"""Who may import whom, and in which order a package is read."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("jobs", "service", "gpu_runner")
TORCH_FAMILY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "datasets", "numpy"}
LINT = (
    "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, is_debug_mode=False))"
)
LOADED = "import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """Check the import contracts of a tree."""
    return subprocess.run(
        [sys.executable, "-c", LINT], cwd=tree, capture_output=True, text=True, env={"PYTHONPATH": str(tree)}
    )


def broken(outcome: subprocess.CompletedProcess[str]) -> list[str]:
    """The contracts that do not hold."""
    return re.findall(r"^(.*\S) +BROKEN", outcome.stdout, re.MULTILINE)


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(CHECKOUT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(tree: Path, file: str, line: str) -> None:
    """Add an import at the end of a module, within a function, where it is easily overlooked."""
    with (tree / file).open("a") as opened:
        opened.write(f"\n\ndef _planted() -> None:\n    {line}  # noqa\n")


def test_every_import_contract_holds() -> None:
    outcome = lint(CHECKOUT)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("file", ["service/app.py", "service/routes/data.py"])
def test_a_planted_torch_below_the_service_is_found(copied_tree: Path, file: str) -> None:
    plant(copied_tree, file, "import torch")
    outcome = lint(copied_tree)
    assert outcome.returncode == 1
    assert broken(outcome) == ["the service never loads the torch family, arq or the runner"]


def test_each_contract_finds_what_it_forbids(copied_tree: Path) -> None:
    plant(copied_tree, "jobs/specs.py", "import litestar")
    plant(copied_tree, "jobs/calls.py", "import httpx")
    plant(copied_tree, "service/records.py", "from gpu_runner import journal")
    plant(copied_tree, "service/store.py", "import redis")
    plant(copied_tree, "service/trash.py", "import httpx")
    plant(copied_tree, "gpu_runner/journal.py", "import sqlite3, torch")
    outcome = lint(copied_tree)
    assert len(broken(outcome)) == _contracts(), outcome.stdout


def _contracts() -> int:
    return (CHECKOUT / "pyproject.toml").read_text().count("[[tool.importlinter.contracts]]")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("service.app", TORCH_FAMILY | {"arq", "gpu_runner", "PIL"}),
        ("service.cli", TORCH_FAMILY | {"arq", "gpu_runner", "PIL"}),
        ("service.remote", TORCH_FAMILY | {"arq", "gpu_runner", "PIL"}),
        ("jobs.async_client", TORCH_FAMILY | {"arq", "litestar", "aiosqlite", "gpu_runner", "service"}),
        ("jobs.client", TORCH_FAMILY | {"arq", "litestar", "aiosqlite", "gpu_runner", "service"}),
        ("gpu_runner.worker", TORCH_FAMILY | {"litestar", "aiosqlite", "service"}),
    ],
)
def test_a_program_loads_nothing_it_must_not_know(module: str, forbidden: set[str]) -> None:
    code = LOADED.format(module=module)
    outcome = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    loaded = forbidden & set(outcome.stdout.split())
    assert not loaded, f"`import {module}` loads {sorted(loaded)}."


# -- reading order


def packages() -> list[Path]:
    return sorted(path.parent for package in PACKAGES for path in (CHECKOUT / package).rglob("__init__.py"))


def modules_of(package: Path) -> set[str]:
    """Modules and packages that lie in a package."""
    files = {path.stem for path in package.glob("*.py")} - {"__init__"}
    return files | {path.parent.name for path in package.glob("*/__init__.py")}


def named_in(package: Path) -> list[str]:
    """The modules that a package's docstring names, in its order."""
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    words = re.findall(r"`(\w+)`", docstring)
    return list(dict.fromkeys(word for word in words if word in modules_of(package)))


def is_family(package: Path) -> bool:
    """A family's registry, written out in its __init__, names its members."""
    source = (package / "__init__.py").read_text()
    return "one file a" in (ast.get_docstring(ast.parse(source)) or "")


@pytest.mark.parametrize("package", packages(), ids=lambda package: str(package.relative_to(CHECKOUT)))
def test_a_package_names_its_modules(package: Path) -> None:
    source = (package / "__init__.py").read_text()
    text = source if is_family(package) else ast.get_docstring(ast.parse(source)) or ""
    pattern = r"\b{}\b" if is_family(package) else r"`{}`"
    forgotten = [name for name in sorted(modules_of(package)) if not re.search(pattern.format(name), text)]
    where = package.relative_to(CHECKOUT) / "__init__.py"
    assert not forgotten, f"The reading order in {where} does not name {forgotten}."


@pytest.mark.parametrize("package", packages(), ids=lambda package: str(package.relative_to(CHECKOUT)))
def test_a_package_can_be_read_in_its_order_without_meeting_an_unknown_name(package: Path) -> None:
    dotted = ".".join(package.relative_to(CHECKOUT).parts)
    order = [name for name in named_in(package) if (package / f"{name}.py").is_file()]
    later = [
        f"{name} imports {other}, which is read later"
        for position, name in enumerate(order)
        for other in order[position + 1 :]
        if f"{dotted}.{other}" in imported_at_once(package / f"{name}.py")
    ]
    assert not later, f"The reading order in {dotted}/__init__.py: {'; '.join(later)}."


def imported_at_once(file: Path) -> set[str]:
    """What a module imports when it is loaded: an import within a function is met only where it is needed."""
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(CHECKOUT))
        for package in PACKAGES
        for path in (CHECKOUT / package).rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, f"{silent} has no module docstring."
