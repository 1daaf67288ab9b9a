"""kernels.evidence: auto takes the Triton kernels where, and only where, a record vouches for them."""

import json

import pytest
import torch

from kernels import choose_logp, evidence, linear_logp
from kernels.pointwise import choose_pointwise

CARD, TRITON = "NVIDIA H100 80GB HBM3", "3.6.0"


def entry(kind="logp", **changes):
    found = {"kind": kind, "card": CARD, "triton": TRITON, "source": evidence.source_hash(kind), "record": "gpu.json"}
    return found | changes


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A function that makes this machine seem to have CARD, and evidence.json to have some entries."""

    def pretend(*entries):
        file = tmp_path / "evidence.json"
        file.write_text(json.dumps(entries))
        monkeypatch.setattr(evidence, "FILE", file)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: CARD)
        monkeypatch.setattr("triton.__version__", TRITON)
        evidence.why_not.cache_clear()
        return torch.device("cuda")

    pytest.importorskip("triton", reason="triton is not installed")
    yield pretend
    evidence.why_not.cache_clear()


def test_auto_is_triton_where_a_record_vouches_for_this_text_on_this_card_under_this_triton(card):
    device = card(entry())
    assert evidence.why_not("logp", device) == ""
    assert choose_logp(torch.bfloat16, device) == choose_logp(torch.float32, device) == "triton"
    assert choose_logp(torch.float64, device) == "chunked", "the kernels know no float64"
    assert choose_pointwise(torch.bfloat16, device) == "reference", "each kind has tests of its own"
    assert choose_pointwise(torch.bfloat16, card(entry("pointwise"))) == "triton"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"card": "NVIDIA A100"}, f"no record of the Triton kernels' tests on {CARD}"),
        ({"source": "0" * 64}, f"the Triton kernels have changed since their tests passed on {CARD}"),
        ({"triton": "3.7.1"}, f"the Triton kernels' tests passed on {CARD} under Triton 3.7.1, not {TRITON}"),
    ],
)
def test_auto_is_chunked_where_none_does(card, changes, reason):
    device = card(entry(**changes))
    assert evidence.why_not("logp", device) == reason
    assert choose_logp(torch.bfloat16, device) == "chunked"


def test_a_cpu_has_no_kernels_to_vouch_for():
    cpu = torch.device("cpu")
    assert "need a GPU" in evidence.why_not("logp", cpu)
    assert choose_logp(torch.float32, cpu) == "chunked" and choose_pointwise(torch.float32, cpu) == "reference"


def test_auto_computes_what_it_chose(monkeypatch):
    import kernels

    asked = []
    monkeypatch.setattr(kernels, "choose_logp", lambda dtype, device: asked.append((dtype, device.type)) or "named")
    monkeypatch.setitem(kernels.IMPLEMENTATIONS, "named", lambda h, w, y: h.new_full(y.shape, 7.0))
    hidden, weight = torch.randn(3, 4), torch.randn(5, 4)
    assert linear_logp(hidden, weight, torch.zeros(3, dtype=torch.long)).tolist() == [7.0] * 3
    assert asked == [(torch.float32, "cpu")]


def test_a_changed_letter_is_another_hash(monkeypatch, tmp_path):
    for names in evidence.SOURCES.values():
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes((evidence.ROOM / name).read_bytes())
    before = {kind: evidence.source_hash(kind) for kind in evidence.SOURCES}
    monkeypatch.setattr(evidence, "ROOM", tmp_path)
    assert {kind: evidence.source_hash(kind) for kind in evidence.SOURCES} == before
    file = tmp_path / "triton" / "tiles.py"
    file.write_text(file.read_text() + "\n")
    assert evidence.source_hash("logp") != before["logp"] and evidence.source_hash("pointwise") == before["pointwise"]


def test_auto_is_resolved_where_numbers_are_kept(card):
    """A cache of reference log-probs is named for what computed them, not for auto."""
    from kernels import resolve_impls

    cpu, device = torch.device("cpu"), card(entry())
    assert resolve_impls("auto", "auto", torch.float32, cpu) == ("chunked", "reference")
    assert resolve_impls("auto", "auto", torch.bfloat16, device) == ("triton", "reference")
    assert resolve_impls("reference", "triton", torch.bfloat16, device) == ("reference", "triton")
