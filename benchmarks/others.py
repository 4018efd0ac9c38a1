"""What other engines took for the same work, measured once on one H200: benchmarks/results/others-nvidia-h200.json.

`works` holds a figure an engine for each workload of `benchmarks.gpu`, the limit where one was counted, and what we set out
to reach; `step of 256` where the time of a decode step of 256 sequences went. Nothing here measures anything.
"""

import json

from benchmarks.machine import RESULTS

OTHERS = json.loads((RESULTS / "others-nvidia-h200.json").read_text(encoding="utf-8"))
