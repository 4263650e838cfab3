"""The rules of the house that no unit test sees: layers, light imports, safe files, configurations, doors."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted([*ROOT.glob("cryoscan/**/*.py"), *ROOT.glob("napari_plugin/**/*.py")])
CONFIGS = sorted(ROOT.glob("configs/*/*.yaml"))

CONFIG_CLASSES = {
    "scan": ("cryoscan.scan.config", "ScanConfig"),
    "batch": ("cryoscan.batch.config", "BatchConfig"),
    "cluster": ("cryoscan.scan.cluster", "ClusterConfig"),
    "datedb": ("cryoscan.datedb.config", "DateDBConfig"),
    "benchmark": ("cryoscan.benchmark.config", "BenchmarkConfig"),
    "tower": ("cryoscan.models.tower_settings", "TowerSettings"),
    "train": ("cryoscan.train.config", "TrainConfig"),
    "train/comparison": ("cryoscan.train.config", "CompareTrainConfig"),
    "train/enhance": ("cryoscan.train.config", "EnhanceTrainConfig"),
    "train/atom": ("cryoscan.train.config", "AtomTrainConfig"),
    "train/secondary": ("cryoscan.train.config", "RecogniseTrainConfig"),
    "cryodomain": ("cryoscan.train.config", "TrainConfig"),
    "cryodomain/atom": ("cryoscan.train.config", "AtomTrainConfig"),
}
COMMANDS = {
    "info",
    "simulate density",
    "datedb build",
    "datedb add",
    "datedb remove",
    "datedb info",
    "datedb search",
    "datedb verify",
    "enhance",
    "segment",
    "identify",
    "scan",
    "batch",
    "relabel",
    "export",
    "demo",
    "benchmark",
    "train",
}
HEAVY = ["torch", "dask", "faiss", "zarr", "skimage", "gemmi", "napari", "matplotlib"]
MACHINE_PATH = re.compile(r"(?<![\w.~$}:/])/(?:home|root|work|Users|mnt|opt|scratch)/\w+")


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_layers_point_downwards():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["cryoscan", "cryoscan.cli", "cryoscan.io", "cryoscan.datedb", "napari_plugin"])
def test_import_is_light(module):
    loaded = run_python(f"import sys, {module}; print(*set({HEAVY!r}) & sys.modules.keys())").split()
    assert not loaded, f"import {module} loads {loaded}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import pandas as pd\npd.read_pickle(path)",
    ],
)
def test_a_file_that_could_run_code_is_noticed(source):
    assert list(dangers(ast.parse(source)))


def test_no_file_can_run_code():
    found = [f"{path.relative_to(ROOT)}: {what}" for path in CODE for what in dangers(ast.parse(path.read_text()))]
    assert not found


def dangers(tree: ast.AST) -> Iterator[str]:
    """What in a syntax tree may run code that a data file brings along."""
    unsafe = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.split(".")[0] in unsafe)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in unsafe:
            yield f"from {node.module} import …"
        elif isinstance(node, ast.Call):
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            called = ast.unparse(node.func)
            if keywords.get("allow_pickle", "False") != "False" or "read_pickle" in called:
                yield ast.unparse(node)
            if called == "torch.load" and keywords.get("weights_only") != "True":
                yield ast.unparse(node)


@pytest.mark.parametrize("kind", CONFIG_CLASSES)
def test_configs_exist(kind):
    assert [path for path in CONFIGS if kind_of(path) == kind]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_config_loads_and_round_trips(path, tmp_path):
    module, name = CONFIG_CLASSES[kind_of(path)]
    config_class = getattr(importlib.import_module(module), name)
    config = config_class.read(path)
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert written.keys() <= config_class.model_fields.keys()
    config.write(tmp_path / "again.yaml")
    assert config_class.read(tmp_path / "again.yaml") == config


def kind_of(path: Path) -> str:
    """A folder holds settings of one kind; what differs says so by its name."""
    own = f"{path.parent.name}/{path.stem.split('_')[0]}"
    return own if own in CONFIG_CLASSES else path.parent.name


@pytest.mark.parametrize(("module", "name"), CONFIG_CLASSES.values())
def test_every_setting_is_described(module, name):
    config_class = getattr(importlib.import_module(module), name)
    assert not [key for key, field in config_class.model_fields.items() if not field.description]


def test_the_commands_are_the_promised_ones(commands):
    assert set(commands) == COMMANDS


def test_every_command_has_help(commands):
    from cryoscan.cli import app

    for name, command in commands.items():
        answer = CliRunner().invoke(app, [*name.split(), "--help"])
        assert answer.exit_code == 0, f"{name}: {answer.output}"
        assert command.help, f"{name} does not say what it does"
        undescribed = [option.name for option in command.params if not getattr(option, "help", None)]
        assert not undescribed, f"{name}: no help for {undescribed}"


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time; sys.argv = ['cryoscan', '--help']\n"
        "from cryoscan.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print(time.process_time(), *set({HEAVY!r}) & sys.modules.keys())"
    )
    seconds = []
    for _ in range(3):  # processor time, interpreter included; the first run may have to compile
        last = run_python(code).splitlines()[-1].split()
        assert last[1:] == []
        seconds.append(float(last[0]))
        if seconds[-1] < 1:
            return
    pytest.fail(f"cryoscan --help took {seconds} s")


def test_no_file_names_a_machine():
    found = [
        f"{path.relative_to(ROOT)}: {place.group()}"
        for path in kept_files()
        for place in MACHINE_PATH.finditer(readable(path))
    ]
    assert not found


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == project["license"]


@pytest.mark.parametrize(
    ("reason", "variable", "passes"),
    [
        ("no display: install Xvfb", "CI", True),
        ("somebody forgot to install it", "CI", False),
        ("somebody forgot to install it", "CRYOSCAN_REQUIRE_GUI", False),
        ("somebody forgot to install it", "UNRELATED", True),
    ],
)
def test_unexpected_skips_fail_in_continuous_integration(reason, variable, passes, tmp_path):
    (tmp_path / "test_it.py").write_text(f"import pytest\ndef test_it(): pytest.skip({reason!r})\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "CRYOSCAN_REQUIRE_GUI")}
    environment |= {variable: "1", "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-c",
            ROOT / "pyproject.toml",
            "-p",
            "conftest",
            tmp_path / "test_it.py",
        ],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode == 0) is passes, done.stdout


def kept_files() -> list[Path]:
    """The files that belong to the project: what git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    names = [name for name in listed.stdout.split("\0") if name]
    paths = [ROOT / name for name in names] or [*CODE, *CONFIGS, *ROOT.glob("docs/**/*.md"), *ROOT.glob("*.*")]
    return [path for path in paths if path.is_file()]


def readable(path: Path) -> str:
    """The text of a file, empty if it is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_tests_side_by_side_have_one_thread_each() -> None:
    """With two threads each, on two cores, trainings take three to ten times as long: threads wait, spinning."""
    import torch

    assert "PYTEST_XDIST_WORKER" not in os.environ or torch.get_num_threads() == 1
