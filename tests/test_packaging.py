"""The files that say what to install agree with each other, and the wheel holds what it must and nothing else."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA_NAME = {"torch": "pytorch-gpu", "matplotlib": "matplotlib-base"}
CONDA_ONLY = {"python", "pip", "cuda-version"}
ENVIRONMENT_EXTRAS = ("notebooks", "gpu")


def environment():
    """The file, its conda packages {name: version} and its pip lines."""
    file = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda, pip = {}, []
    for entry in file["dependencies"]:
        if isinstance(entry, dict):
            pip += entry["pip"]
        else:
            name, version = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*(.*)", entry).groups()
            assert name not in conda, f"{name} is listed twice"
            conda[name] = version
    return file, conda, pip


def requirements(*extras):
    lines = PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]
    return [Requirement(line) for line in lines]


def test_environment_has_every_requirement_with_the_same_bounds_and_nothing_else():
    _, conda, _ = environment()
    wanted = {CONDA_NAME.get(r.name, r.name): r.specifier for r in requirements(*ENVIRONMENT_EXTRAS)}
    assert set(conda) - CONDA_ONLY == set(wanted)
    for name, specifier in wanted.items():
        assert SpecifierSet(conda[name]) == specifier, f"environment.yml: {name} {conda[name]}; pyproject: {specifier}"
    assert SpecifierSet(conda["python"]) == SpecifierSet(PROJECT["requires-python"])


def test_environment_takes_one_channel_and_leaves_only_this_project_to_pip():
    file, conda, pip = environment()
    assert file["channels"] == ["conda-forge", "nodefaults"]
    assert "pip" in conda
    assert pip == ["-e ."]  # conda hands this list to pip as a requirements file, where --no-deps is an error


def test_environment_is_written_in_condas_grammar():
    rattler = pytest.importorskip("rattler")
    file, _, _ = environment()
    for entry in file["dependencies"]:
        if isinstance(entry, str):
            rattler.MatchSpec(entry, strict=True)
    with pytest.raises(Exception, match="unable to parse"):  # or the loop above would prove nothing
        rattler.MatchSpec("torch >=2.11,,<2.14", strict=True)


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_constraints_are_exact_and_fit_every_bound():
    pinned = {}
    for pin in pins():
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "+" not in specifier.version, f"{pin} is not a pin for every machine"
        pinned[canonicalize_name(pin.name)] = specifier.version
    assert pinned["torch"] == "2.13.0"
    for wanted in requirements("notebooks", "serve", "fleet", "dev"):
        if wanted.name != "triton":  # its version is torch's business
            version = pinned[canonicalize_name(wanted.name)]
            assert wanted.specifier.contains(version), f"{wanted} excludes the pinned {version}"


def test_constraints_name_no_host_and_nothing_that_exists_for_cuda_only():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text and "--" not in text
    assert not [pin.name for pin in pins() if re.match(r"nvidia|cuda|triton|flash", pin.name)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8"
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_wheel_holds_the_offline_model(wheel):
    held = {Path(name).name for name in wheel if name.startswith("nanovllm/assets/offline/")}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= held
    on_disk = {p.relative_to(ROOT).as_posix() for p in (ROOT / "nanovllm").rglob("*.py")}
    assert on_disk <= set(wheel)


def test_wheel_holds_nothing_else(wheel):
    info = re.compile(r"nano_vllm_course-[^/]+\.dist-info/")
    stray = [name for name in wheel if not name.startswith(("nanovllm/", "visualizations/")) and not info.match(name)]
    assert not stray
    assert not [name for name in wheel if ".env" in name or "__pycache__" in name or "test" in name.lower()]


def test_importing_the_engine_loads_only_what_it_needs():
    """A reader without Jupyter, and an engine without a picture: neither is loaded behind their back."""
    code = "import sys, nanovllm; print(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, encoding="utf-8")
    loaded = set(run.stdout.split())
    assert not loaded & {"visualizations", "matplotlib", "ipywidgets", "anywidget", "IPython", "jupyterlab"}


def test_the_readme_and_the_makefile_name_the_same_commands():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make (\w+)`|^make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE):
        name = target[0] or target[1]
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"the README says `make {name}`"
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
