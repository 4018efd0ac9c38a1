"""Pure JavaScript under node's own test runner."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from visualizations.explorers.base import bundle

HEAD = """import assert from "node:assert/strict";
import test from "node:test";
import * as js from "./bundle.mjs";
"""


def node_test(module: str, source: str) -> None:
    """Run node tests on what `module` exports, called `js` there. Skips without node."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed; the browser tests run the same code")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bundle.mjs").write_text(bundle(module), encoding="utf-8")
        Path(folder, "module.test.mjs").write_text(HEAD + source, encoding="utf-8")
        done = subprocess.run(["node", "--test", folder], capture_output=True, text=True, timeout=60, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-4000:]
