"""What a step's cost is said to be, against a count by hand."""

from types import SimpleNamespace

import pytest
import torch
from conftest import GOLDEN

from align.data.encode import Group
from align.models import read_config
from align.parallel import World
from align.plan.devices import card_flops, peak_flops
from align.plan.setup import Setup
from align.speed import Speed


def test_mfu_is_what_the_method_needs_over_what_the_ranks_could_do(monkeypatch):
    """Falcon 7B in small: two layers, one key/value head, a tied head. Two pairs in two seconds on two devices."""
    config = read_config(GOLDEN / "falcon_7b")
    d, f, v = config.hidden_size, config.ffn_hidden_size, config.vocab_size
    groups = [Group([1, 2, 3], [[4, 5], [6, 7, 8]], 0), Group([1], [[2], [3, 4]], 1)]
    data = SimpleNamespace(share=True, groups=groups, n_tokens=lambda indices: sum(groups[i].n_tokens for i in indices))
    monkeypatch.setattr("align.speed.peak_flops", lambda device, dtype: 1e9)
    # checkpointing recomputes, and that is not what the method needs
    speed = Speed([Setup(config, checkpointing="full")], [data], World(0, 2, torch.device("cpu")))
    found = speed([[0, 1]], seconds=2.0)
    tokens = (3 + 1 + 2) + (1 + 0 + 1)  # read once each; the last of a response predicts nothing
    pairs = (6 + (3 + 1) + (6 + 3)) + (1 + 0 + (1 + 1))
    predicted = 2 + 3 + 1 + 2
    matrices = 2 * (d * (d + 2 * config.head_dim) + d * d + 2 * d * f)
    forward = 2 * tokens * matrices + 2 * 4 * d * pairs + 2 * predicted * v * d
    assert found["mfu"] == pytest.approx(3 * forward / 2.0 / 2e9, rel=1e-12)
    # prompts are counted with each response, as if a row were a sequence of its own
    assert found["tokens"] == (5 + 6) + (2 + 3) and found["tokens_per_second"] == 8.0


def test_no_mfu_where_the_peak_is_not_known(monkeypatch):
    monkeypatch.setattr("align.speed.peak_flops", lambda device, dtype: None)
    data = SimpleNamespace(share=True, groups=[], n_tokens=lambda indices: 0)
    speed = Speed([Setup(read_config(GOLDEN / "llama31"))], [data], World(0, 1, torch.device("cpu")))
    assert "mfu" not in speed([[]], 1.0)


def test_a_card_is_known_by_its_name():
    names = {"NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H100 PCIe": 756.0, "NVIDIA A100-SXM4-80GB": 312.0}
    names |= {"NVIDIA L40S": 362.0, "NVIDIA L4": 121.0, "NVIDIA GB200": 2250.0, "NVIDIA H200": 989.4}
    assert {name: card_flops(name) / 1e12 for name in names} == names
    assert card_flops("NVIDIA GeForce GT 710") is None


def test_a_cpu_is_measured():
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e15
