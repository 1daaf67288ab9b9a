"""Packed linear layers against the plain ones."""

import pytest
import torch
from torch import nn

from align.generate.packed import Packed
from align.models import FalconConfig, build_model, init_weights


def model():
    raw = {"vocab_size": 70, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "bias": True}
    model = build_model(FalconConfig.from_dict({**raw, "tie_word_embeddings": False, "initializer_range": 0.3}))
    init_weights(model, seed=0)
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 40)])
def test_products_are_the_plain_ones(shape):
    plain, ids = model(), torch.randint(70, shape, generator=torch.Generator().manual_seed(2))
    packed = Packed(plain)
    assert len(packed.forwards) == 2 * 4 + 1
    with torch.no_grad():
        expected = plain.logits(ids)
        with packed:
            torch.testing.assert_close(plain.logits(ids), expected, rtol=1e-5, atol=1e-5)
            assert len(vars(plain.lm_head)["forward"].args) == 2
        assert torch.equal(plain.logits(ids), expected) and "forward" not in vars(plain.lm_head)


def test_the_copies_do_not_follow_the_weights():
    plain, ids = model(), torch.tensor([[1, 2, 3]])
    packed = Packed(plain)
    with torch.no_grad():
        before = plain.logits(ids)
        plain.lm_head.weight.zero_()
        with packed:
            torch.testing.assert_close(plain.logits(ids), before, rtol=1e-5, atol=1e-5)
        assert (plain.logits(ids) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_stay_as_they_are(dtype):
    assert not Packed(model().to(dtype)).forwards
