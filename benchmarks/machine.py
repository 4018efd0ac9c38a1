"""What a measurement depends on; nothing that says whose machine it is."""

import datetime
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The commit measured, marked when the code differed from it. COMMIT names it where the repository is not at hand."""
    if told := os.environ.get("COMMIT"):
        return told

    def git(*arguments: str) -> str:
        try:
            ran = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, check=True, encoding="utf-8")
            return ran.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    found = git("rev-parse", "--short", "HEAD") or "unknown"
    return found + " with changes" if git("status", "--porcelain", "--untracked-files=no", "nanovllm", "benchmarks") else found


def versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file() and (found := re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8"))):
        return found[1].strip()
    return platform.processor() or platform.machine()


def gpu() -> dict[str, Any]:
    return {"device": torch.cuda.get_device_name(), "date": datetime.date.today().isoformat(), "commit": commit(),
            **versions("triton"), "cuda": torch.version.cuda}  # fmt: skip


def device() -> str:
    """The GPU's name, or the CPU's where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu()


def results_file(name: str) -> Path:
    """benchmarks/results/<name in small letters and hyphens>.json"""
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")
