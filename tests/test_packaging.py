"""What is shipped, what imports what, and that the set-up scripts do what they say."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

#: The parts whoever embeds the simulator imports; config files and the command line are not among them.
LIGHT_PACKAGES = (
    "sim", "timing", "workloads", "retention", "policies", "metrics", "simulation", "checkpoint", "envs", "compat",
)  # fmt: skip
#: What those parts must do without, importable or not.
HEAVY = ("pydantic", "gymnasium", "gymnax")
#: Distributions that are imported under another name.
IMPORT_NAMES = {"pyyaml": "yaml", "orbax-checkpoint": "orbax"}
#: Modules that are part of a dependency under a name of their own (pydantic needs exactly one pydantic_core).
PARTS = {"pydantic_core"}


def import_names(requirements: list[str]) -> set[str]:
    """Top-level modules of requirements such as ``"pyyaml>=6.0"``."""
    names = {re.split(r"[^A-Za-z0-9_-]", requirement)[0].lower() for requirement in requirements}
    return {IMPORT_NAMES.get(name, name) for name in names}


def imported_by(path: Path) -> set[str]:
    """Top-level modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def modules_of(part: str) -> list[str]:
    """Names of a part of jaxsched: the package with all its modules, or the one module."""
    folder = ROOT / "jaxsched" / part
    if not folder.is_dir():
        return [f"jaxsched.{part}"]
    inside = pkgutil.walk_packages([str(folder)], prefix=f"jaxsched.{part}.")
    return [f"jaxsched.{part}", *(module.name for module in inside)]


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in the repository's root."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


BLOCKED_IMPORTS = """
import importlib, sys

blocked, modules = sys.argv[1].split(","), sys.argv[2:]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked by the test")

sys.meta_path.insert(0, Blocker())
for module in modules:
    importlib.import_module(module)
print(len(modules))
"""


@pytest.mark.parametrize("part", LIGHT_PACKAGES)
def test_the_simulator_imports_without_pydantic(part):
    modules = modules_of(part)
    done = run_python(BLOCKED_IMPORTS, ",".join(HEAVY), *modules)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules)


def test_the_import_blocker_blocks():
    done = run_python(BLOCKED_IMPORTS, ",".join(HEAVY), "jaxsched.config")
    assert done.returncode != 0
    assert "pydantic is blocked by the test" in done.stderr


def test_everything_jaxsched_imports_is_a_declared_dependency():
    """Also what jax happens to bring along: nothing promises that it will tomorrow. Some come with an extra."""
    project = PYPROJECT["project"]
    extras = (
        requirement
        for name in ("traces", "gym", "compat", "hindsight")
        for requirement in project["optional-dependencies"][name]
    )
    declared = import_names([*project["dependencies"], *extras])
    imported = {module: path for path in (ROOT / "jaxsched").rglob("*.py") for module in imported_by(path)}
    missing = set(imported) - declared - PARTS - set(sys.stdlib_module_names) - {"jaxsched"}
    assert {module: str(imported[module]) for module in missing} == {}


def test_every_module_imports_without_what_only_developers_install():
    project = PYPROJECT["project"]
    extras = import_names(project["optional-dependencies"]["dev"]) - import_names(project["dependencies"])
    assert {"pytest", "hypothesis"} <= extras
    modules = [module.name for module in pkgutil.walk_packages([str(ROOT / "jaxsched")], prefix="jaxsched.")]
    done = run_python(BLOCKED_IMPORTS, ",".join(sorted(extras - {"jaxsched"})), *modules)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules)


def test_importing_jaxsched_does_not_start_a_jax_backend():
    """A user may still choose platform and devices after `import jaxsched`."""
    done = run_python(
        "import jaxsched.simulation, jaxsched.policies, jaxsched.workloads, jaxsched.timing\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    assert done.stdout.strip() == "False", done.stdout + done.stderr


def test_help_does_not_import_jax():
    done = run_python(
        "import sys\n"
        "sys.argv = ['jaxsched', '--help']\n"
        "from jaxsched.cli import main\n"
        "try:\n"
        "    code = main()\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "print('exit code', code, 'jax imported', 'jax' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("jax imported False"), done.stdout
    assert "exit code 0 " in done.stdout or "exit code None " in done.stdout
    for command in ("compare", "simulate", "calibrate", "verify", "list"):
        assert command in done.stdout


def test_the_console_script_exists():
    module, function = PYPROJECT["project"]["scripts"]["jaxsched"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_wheel_holds_jaxsched_and_nothing_else():
    """As the build backend sees it: an installed module called `train` would shadow every user's own."""
    files = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {path.split("/")[0] for path in files} == {"jaxsched"}
    assert {"jaxsched/cli.py", "jaxsched/sim/machine.py"} <= files


def test_every_package_of_jaxsched_can_be_imported_from_the_wheel():
    """A folder with modules but no __init__.py would be a namespace package: other tools skip those."""
    folders = {path.parent for path in (ROOT / "jaxsched").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_package_ships_code_only():
    """No traces, measurements or other third-party data."""
    kinds = {
        path.suffix for path in (ROOT / "jaxsched").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert kinds <= {".py", ".typed"}


class TestReadmeBlocks:
    """scripts/smoke_readme.py, and that README.md satisfies it."""

    @pytest.fixture
    def smoke(self):
        path = ROOT / "scripts" / "smoke_readme.py"
        spec = importlib.util.spec_from_file_location("smoke_readme", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    def test_every_block_of_the_readme_says_whether_it_is_run(self, smoke):
        blocks = smoke.blocks_of((ROOT / "README.md").read_text(encoding="utf-8"))
        assert {block.mark for block in blocks} == {"smoke", "smoke-python", "no-smoke"}

    def test_a_block_without_a_mark_is_refused(self, smoke):
        with pytest.raises(smoke.MarkError, match="line 2"):
            smoke.blocks_of("text\n```bash\nls\n```\n")

    def test_a_block_left_out_must_give_its_reason(self, smoke):
        with pytest.raises(smoke.MarkError, match="reason"):
            smoke.blocks_of("<!-- no-smoke -->\n```bash\nls\n```\n")

    def test_a_mark_of_the_other_language_is_refused(self, smoke):
        with pytest.raises(smoke.MarkError, match="python"):
            smoke.blocks_of("<!-- smoke -->\n```python\nprint(1)\n```\n")

    def test_arguments_go_behind_jaxsched_lines_and_before_comments(self, smoke):
        text = "<!-- smoke: --small -->\n```bash\njaxsched compare a.yaml   # all\necho done\n```\n"
        (block,) = smoke.blocks_of(text)
        assert smoke.bash_code(block) == "set -euo pipefail\njaxsched compare a.yaml --small\necho done\n"

    def test_a_failing_line_fails_its_block(self, smoke, tmp_path):
        block = smoke.Block(1, "bash", "false\ntrue\n", "smoke", "")
        assert not smoke.run(block, tmp_path, dict(os.environ))
        assert smoke.run(smoke.Block(1, "bash", "true\n", "smoke", ""), tmp_path, dict(os.environ))


def fake_python(folder: Path, name: str, script: str) -> None:
    """A command on the PATH of `set_up` that answers as `script` says."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


class TestSetUp:
    """scripts/setup.sh where it cannot succeed: it says what is wrong and leaves with 1. (CI runs the other case.)"""

    @pytest.fixture
    def repository(self, tmp_path):
        folder = tmp_path / "repository"
        (folder / "scripts").mkdir(parents=True)
        shutil.copy2(ROOT / "scripts" / "setup.sh", folder / "scripts")
        shutil.copy2(ROOT / "pyproject.toml", folder)
        commands = tmp_path / "bin"
        commands.mkdir()
        for name in ("bash", "dirname", "cksum", "cat", "rm"):  # all the script needs besides a python
            (commands / name).symlink_to(shutil.which(name) or name)
        return folder

    def set_up(self, repository: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [repository / "scripts" / "setup.sh"],
            env={"PATH": str(repository.parent / "bin"), "UV": "", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def test_without_any_python_it_says_so(self, repository):
        done = self.set_up(repository)
        assert done.returncode == 1
        assert "no usable Python >= 3.11 found." in done.stderr
        assert "make PYTHON=" in done.stderr

    def test_a_pyenv_shim_that_cannot_run_is_passed_over(self, repository):
        """pyenv leaves commands on the PATH for versions that are not active."""
        commands = repository.parent / "bin"
        fake_python(commands, "python3.13", 'echo "pyenv: python3.13: command not found" >&2; exit 127')
        fake_python(commands, "python3.11", '[ "$1" = -c ]')  # every check succeeds, `-m venv` does not
        done = self.set_up(repository)
        assert done.returncode == 1
        assert "setup: python3.11" in done.stdout
        assert "python3.11 could not make .venv" in done.stderr

    def test_a_python_that_is_too_old_is_named(self, repository):
        fake_python(repository.parent / "bin", "python3", 'case "$2" in *sys.exit*) exit 1;; esac; echo 3.9')
        done = self.set_up(repository)
        assert done.returncode == 1
        assert "(python3 is 3.9)" in done.stderr

    def test_a_python_without_ensurepip_gets_the_package_to_install(self, repository):
        fake_python(repository.parent / "bin", "python3", 'case "$2" in *ensurepip*) exit 1;; esac; exit 0')
        done = self.set_up(repository)
        assert done.returncode == 1
        assert "apt install python3-venv" in done.stderr

    def test_an_interpreter_asked_for_by_name_is_not_replaced_by_another(self, repository):
        (repository.parent / "bin" / "python3").symlink_to(sys.executable)
        done = self.set_up(repository, PYTHON="python9.9")
        assert done.returncode == 1
        assert "asked for python9.9" in done.stderr

    def test_without_a_package_index_it_says_what_to_look_at_and_leaves_no_stamp(self, repository, tmp_path):
        """The environment is made; the installation has no index to ask."""
        (repository.parent / "bin" / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
        settings = tmp_path / "pip.conf"
        settings.write_text("")
        done = self.set_up(repository, PIP_NO_INDEX="1", PIP_CONFIG_FILE=str(settings), HOME=str(tmp_path))
        assert done.returncode == 1
        assert "the installation failed" in done.stderr
        assert "PIP_INDEX_URL" in done.stderr
        assert not (repository / ".venv" / ".jaxsched-setup").exists()
