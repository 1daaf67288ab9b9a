"""A trace of some steps."""

import json

import pytest
import torch

from align.profile import profiled


@pytest.mark.parametrize("steps, count, traced", [(range(6), 3, "3-5"), (range(4, 9), 2, "7-8"), (range(3), 3, "1-3")])
def test_some_steps_are_traced(steps, count, traced, tmp_path):
    seen = []
    for step in profiled(steps, count, tmp_path / "profile"):
        with torch.profiler.record_function(f"step {step + 1}"):
            torch.ones(2, 2) @ torch.ones(2, 2)
        seen.append(step)
    assert seen == list(steps)
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == f"steps-{traced}.json"
    names = {event["name"] for event in json.loads(file.read_text())["traceEvents"]}
    first, last = map(int, traced.split("-"))
    assert "aten::mm" in names
    assert {name for name in names if name.startswith("step ")} == {f"step {i}" for i in range(first, last + 1)}


def test_none_by_default(tmp_path):
    assert list(profiled(range(3), 0, tmp_path / "profile")) == [0, 1, 2] and not any(tmp_path.iterdir())
