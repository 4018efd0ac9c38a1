"""Scripts written for nano-vllm run as they are but for the path of the model."""

import re
import subprocess
import sys
from pathlib import Path

from .checkpoints import random_checkpoint

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_example():
    out = run(EXAMPLES / "example.py")
    assert out.count("Prompt: ") == 2 and all(len(text) > 10 for text in re.findall(r"Completion: '(.*)'", out))


def test_bench(tmp_path):
    folder = random_checkpoint(tmp_path, vocab_size=10_001, max_position_embeddings=4096)
    out = run(EXAMPLES / "bench.py", folder, 2)
    total, throughput = re.search(r"Total: (\d+)tok, .*Throughput: ([\d.]+)tok/s", out).groups()
    assert 200 <= int(total) <= 2048 and float(throughput) > 0
