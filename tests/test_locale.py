"""Files are UTF-8 whatever the machine's own encoding is: GBK on a Chinese Windows, cp1252 on a Western one, none in a bare
container."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("nanovllm", "visualizations", "benchmarks", "training", "chapters", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "chapters").rglob("*.ipynb"))

# Imports everything, draws a figure, makes explorers and the report's page, writes a trace and reads it again.
SCRIPT = """
import importlib, locale, pathlib, pkgutil, sys, warnings
codec, folder = sys.argv[1], pathlib.Path(sys.argv[2])
assert open(folder / "probe", "w").encoding.lower() in codec.split("/"), open(folder / "probe", "w").encoding
warnings.filterwarnings("error", category=EncodingWarning, module="nanovllm|visualizations")
import nanovllm, visualizations as viz
for package in (nanovllm, viz):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if ".kernels" not in module.name and "_fused" not in module.name and not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                assert not error.name.startswith(("nanovllm", "visualizations")), error
from nanovllm import LLM, SamplingParams
from nanovllm.tracing.trace import Trace
from visualizations.report import report_html
with LLM(folder / "model", device="cpu", num_kvcache_blocks=64) as llm:
    assert llm.config.model.name == "model"
    with llm.trace(folder / "trace.jsonl") as trace:
        out, = llm.chat([{"role": "user", "content": "na\u00efve \u72d0\u72f8 \U0001f98a"}],
                        SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), use_tqdm=False)
    assert "na\u00efve \u72d0\u72f8 \U0001f98a" in out.prompt
trace.save(folder / "saved.jsonl")
assert len(Trace.load(folder / "saved.jsonl")) == len(trace) > 3
trace.to_perfetto(folder / "perfetto.json")
page = report_html(trace, title="\u72d0\u72f8 \U0001f98a")
(folder / "report.html").write_text(page, encoding="utf-8")
print("drawn", codec)
"""


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """Compiled here, as hardly any machine has them: folder of locales."""
    folder = tmp_path_factory.mktemp("locales")
    if not shutil.which("localedef"):
        pytest.skip("needs localedef")
    for name, charmap in (("zh_CN", "GBK"), ("en_US", "CP1252")):
        made = subprocess.run(["localedef", "-i", name, "-f", charmap, str(folder / f"{name}.{charmap}")], capture_output=True)
        if made.returncode not in (0, 1):
            pytest.skip(f"localedef cannot make {name}.{charmap}")
    return folder


@pytest.mark.parametrize("locale, codec", [("zh_CN.GBK", "gbk"), ("en_US.CP1252", "cp1252"), ("C", "ascii/ansi_x3.4-1968")])
def test_everything_imports_and_draws_in_a_locale_of_another_encoding(locales, tmp_path, locale, codec):
    from nanovllm.config import OFFLINE_MODEL
    shutil.copytree(OFFLINE_MODEL, tmp_path / "model")
    environment = os.environ | {"LOCPATH": str(locales), "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
                                "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8"}
    environment.pop("PYTHONWARNINGS", None)
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    ran = subprocess.run([sys.executable, "-X", "warn_default_encoding", str(tmp_path / "script.py"), codec, str(tmp_path)],
                         env=environment, capture_output=True, encoding="utf-8", timeout=600)
    assert ran.returncode == 0 and f"drawn {codec}" in ran.stdout, ran.stderr[-3000:]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "狐狸 🦊" in page and "data:image" in page and len(page) > 10_000


def without_encoding(code: str) -> list[int]:
    """Lines of the calls that read or write text in whatever encoding the machine prefers."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in keywords or None in keywords:
            continue
        mode = keywords.get("mode", node.args[1] if len(node.args) > 1 else None)
        binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
        if (name in ("read_text", "write_text", "TextIOWrapper")
                or (name == "open" and isinstance(node.func, ast.Name) and not binary)
                or (name in ("run", "Popen", "check_output") and keywords.keys() & {"text", "universal_newlines"})):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_names_its_encoding(path):
    assert not without_encoding(path.read_text(encoding="utf-8")), f"{path}: pass encoding='utf-8'"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_text_file_of_a_chapter_names_its_encoding(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        code = "".join(line for line in cell["source"] if not line.startswith(("%", "!")))
        if cell["cell_type"] == "code" and not "".join(cell["source"]).startswith("%%"):
            assert not without_encoding(code), f"{path}, cell {cell.get('id')}: pass encoding='utf-8'"


@pytest.mark.parametrize("code, faults", [
    ("p.read_text()", 1), ("p.write_text(x)", 1), ("open('f')", 1), ("open('f', 'w')", 1), ("run(x, text=True)", 1),
    ("open('f', 'rb')", 0), ("open('f', mode='wb')", 0), ("p.read_text(encoding='utf-8')", 0), ("gate.open()", 0),
    ("run(x, encoding='utf-8')", 0), ("run(x, capture_output=True)", 0), ("open('f', 'w', encoding='utf-8')", 0)])
def test_the_check_above_sees_what_it_must(code, faults):
    assert len(without_encoding(code)) == faults
