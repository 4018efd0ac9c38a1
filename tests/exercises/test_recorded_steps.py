"""Chapter 11 shows the recorded steps of a GPU when their files are there, and says so when they are not."""

import pytest
import torch

from chapters.exercises import timelines
from visualizations import plot_gpu_timeline

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the chapter measures")


def test_without_files_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(timelines, "RECORDED", tmp_path)
    runs, label = timelines.timelines([1, 2])
    assert runs == {} and "no recorded GPU run" in label


def test_recorded_files_are_shown_with_their_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(timelines, "RECORDED", tmp_path)
    for form, captured in (("eager", False), ("graph", True)):
        trace = timelines.queue([3.0] * 7, 5.0, captured=captured)
        trace.meta |= {"device": "a GPU", "date": "2026-11-24", "commit": "abc1234"}
        trace.save(tmp_path / f"decode_{form}.trace")
    runs, label = timelines.timelines([1, 2])
    assert label.startswith("recorded under the profiler on a GPU, 2026-11-24, commit abc1234:")
    caption = next(t.get_text() for t in plot_gpu_timeline(runs).axes[0].texts if t.get_gid() == "caption")
    assert "eager: 7 kernels, busy 55% of 0.04 ms" in caption and "captured: 7 kernels, busy 81% of 0.03 ms" in caption
