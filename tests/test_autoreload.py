"""A notebook with `%autoreload 2` in which a reader edits the engine's own files: what was made before goes on working.

autoreload makes new classes of an edited file, turns what exists over to them and patches the old ones, which other modules
still hold. It cannot do that for a class with `__slots__`, so the classes in the files that the course invites to edit have
none. After an edit of engine/sequence.py, whose class keeps them, the kernel is restarted.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nanovllm

pytest.importorskip("IPython")
EDITED = ("layers/sampler.py", "engine/scheduler.py", "engine/block_manager.py", "engine/scheduled_batch.py",
          "layers/logits_processors.py", "outputs.py", "layers/attention.py", "serving/detokenizer.py",
          "serving/stop_strings.py")

SCRIPT = """
import importlib, json, os, pathlib, sys, time
root, edited = pathlib.Path(sys.argv[1]), sys.argv[2:]
sys.path.insert(0, str(root))
from IPython.core.interactiveshell import InteractiveShell
from IPython.extensions.autoreload import superreload
shell = InteractiveShell.instance(colors="nocolor")
shell.user_ns["said"] = said = []

def run(code):
    shell.run_cell(code).raise_error()

run("%load_ext autoreload")
run("%autoreload 2")
run('''
from nanovllm import LLM, SamplingParams
llm = LLM(device="cpu", num_kvcache_blocks=64)
p, odd = SamplingParams(temperature=0, max_tokens=4), dict(max_tokens=4, seed=1, top_k=5, logprobs=1, min_tokens=2, stop=["zz"])
def both():
    return [llm.generate("A fox", q, use_tqdm=False)[0].token_ids for q in (p, SamplingParams(**odd))]
expected = both()
assert __import__("nanovllm").__file__.startswith(%r)
''' % str(root))
file = root / "nanovllm" / "sampling_params.py"
text = file.read_text(encoding="utf-8")
assert "    temperature: float = 1.0" in text
file.write_text(text.replace("    temperature: float = 1.0", "    temperature: float = 0.25"), encoding="utf-8")
os.utime(file, (time.time() + 10,) * 2)
run("odd['temperature'] = 1.0")
run("made = SamplingParams(), SamplingParams(temperature=0.5)")
run("said.append([p.temperature, *(q.temperature for q in made), both() == expected])")
run("from nanovllm import SamplingParams")
run("said.append(both() == expected)")
old_objects = shell.magics_manager.registry["AutoreloadMagics"]._reloader.old_objects
for name in edited:  # whole, as autoreload does for what it cannot patch function by function
    superreload(sys.modules["nanovllm." + name.removesuffix(".py").replace("/", ".")], importlib.reload, old_objects, shell)
    run("said.append(both() == expected)")
print(json.dumps(said))
"""


def test_an_edited_file_leaves_what_was_made_before_at_work(tmp_path):
    shutil.copytree(Path(nanovllm.__file__).parent, tmp_path / "nanovllm", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "session.py").write_text(SCRIPT, encoding="utf-8")
    ran = subprocess.run([sys.executable, "session.py", str(tmp_path), *EDITED], cwd=tmp_path, capture_output=True,
                         encoding="utf-8", timeout=300)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    first, *others = json.loads(ran.stdout.splitlines()[-1])
    assert first == [0, 0.25, 0.5, True]
    assert others == [True] * (1 + len(EDITED))
