"""Generation against transformers' greedy tokens, and sampling against the distribution it claims."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align.generate import choose, generate
from align.models import FalconConfig, build_model, init_weights, load_model

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = json.loads((GOLDEN / "index.json").read_text())["variants"]


@pytest.fixture(scope="module")
def model():
    raw = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = build_model(FalconConfig.from_dict({**raw, "initializer_range": 0.3}))
    init_weights(model, seed=0)
    return model


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 12, (13,), generator=generator)
    return [torch.randint(64, (int(n),), generator=generator).tolist() for n in sizes]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch_size", [1, 128])
def test_greedy_tokens_are_transformers(variant, batch_size):
    numbers = load_file(GOLDEN / variant / "golden.safetensors")
    lengths = numbers["gen_prompt_lengths"]
    prompts = [row[:n].tolist() for row, n in zip(numbers["gen_prompt_ids"], lengths, strict=True)]
    new = generate(load_model(GOLDEN / variant), prompts, 16, batch_size=batch_size)
    assert new == numbers["gen_output_ids"].tolist()


def test_greedy_tokens_of_text_prompts():
    folder = GOLDEN / "falcon2_11b_text"
    cases = json.loads((folder / "text_golden.json").read_text())
    new = generate(load_model(folder), [case["prompt_ids"] for case in cases], 16)
    assert new == [case["output_ids"] for case in cases]


def test_greedy_is_the_argmax_of_whole_forwards(model, prompts):
    for prompt, new in zip(prompts, generate(model, prompts, 5), strict=True):
        ids = list(prompt)
        for token in new:
            assert token == model.logits(torch.tensor([ids]))[0, -1].argmax()
            ids.append(token)
        assert len(new) == 5


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_end_token_ends_its_row_alone(model, prompts, temperature):
    free = generate(model, prompts, 20, temperature, seed=3)
    # tokens that some rows reach soon, some late, some never, so that rows are dropped along the way
    eos = (free[0][0], free[1][4], free[2][9])
    ended = generate(model, prompts, 20, temperature, eos_ids=eos, seed=3)
    expected = [row[: next((i for i, token in enumerate(row) if token in eos), 20)] for row in free]
    assert ended == expected
    assert min(map(len, ended)) == 0 and len({len(row) for row in ended}) > 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batches_change_nothing(model, prompts, temperature):
    together = generate(model, prompts, 12, temperature, seed=5)
    assert generate(model, prompts, 12, temperature, seed=5, batch_size=4) == together
    assert generate(model, prompts, 12, temperature, seed=5, batch_size=1) == together
    # nor do the prompts that come after
    assert generate(model, prompts[:3], 12, temperature, seed=5) == together[:3]


def test_seeds_and_low_temperatures(model, prompts):
    assert generate(model, prompts, 12, 1.0, seed=1) == generate(model, prompts, 12, 1.0, seed=1)
    assert generate(model, prompts, 12, 1.0, seed=1) != generate(model, prompts, 12, 1.0, seed=2)
    assert generate(model, prompts, 12, 1e-6, seed=1) == generate(model, prompts, 12)


def test_samples_follow_the_softmax(model):
    n, prompt, temperature = 20_000, [5, 9], 0.8
    p = (model.logits(torch.tensor([prompt]))[0, -1] / temperature).softmax(-1).double()
    tokens = generate(model, [prompt] * n, 1, temperature, seed=7, batch_size=n)
    counts = torch.bincount(torch.tensor(tokens)[:, 0], minlength=64).double()
    # five standard deviations of a binomial count, and one for the cells too rare to be normal
    assert ((counts - n * p).abs() < 5 * (n * p * (1 - p)).sqrt() + 1).all()
    assert p.max() < 0.9 and (counts > 0).sum() > 10


def test_choose_at_the_edges():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, 5)
    uniform = torch.tensor([0.0, 0.4999, 0.5, 1 - 1e-12], dtype=torch.float64)
    assert choose(logits, 1.0, uniform).tolist() == [1, 1, 3, 3]
    assert choose(torch.tensor([[1.0, 3.0, 2.0]]), 0.0, uniform[:1]).tolist() == [1]


def test_nothing_to_do(model):
    assert generate(model, [], 5) == []
    assert generate(model, [[1], [2]], 0) == [[], []]
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(model, [[1], []], 5)
    with pytest.raises(ValueError, match="temperature"):
        generate(model, [[1]], 5, temperature=-1.0)


def test_the_model_can_train_afterwards(model):
    generate(model, [[1, 2, 3]], 3)
    ids = torch.tensor([[1, 2, 3]])
    model(ids, ids, torch.ones_like(ids, dtype=torch.bool)).sum().backward()
    assert model.embedding.weight.grad.abs().sum() > 0
    model.zero_grad(set_to_none=True)
