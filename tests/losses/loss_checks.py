"""Checks that every loss must pass and the recorded values, shared by the tests of the loss families. All in float64.

python tests/losses/loss_checks.py nca my_losses:MyLoss

holds losses, of this package or your own, to what is asked of all of them: the closed-form gradient is autograd's and the
slope of the loss, and float32 is finite far from the reference.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align.losses import Loss, LossInputs, build_loss, loss_parameters
from align.losses.base import DISTRIBUTIONS
from kernels import linear_logp
from kernels.token_stats import linear_collision, linear_kl

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())


def inputs(n=6, k=2, seed=0, spread=20.0, **more):
    """Random log-probs around a reference. spread: standard deviation of the log-ratios, in nats."""
    print(f"seed {seed}")
    g = torch.Generator().manual_seed(seed)
    ref = -100 * torch.rand(n, k, generator=g, dtype=torch.float64) - 5
    return LossInputs(
        logps=ref + spread * torch.randn(n, k, generator=g, dtype=torch.float64),
        ref_logps=ref,
        n_tok=torch.randint(1, 50, (n, k), generator=g),
        **more,
    )


def needed(loss, n, k=2, ref=None, seed=0):
    """The further inputs that a loss declares it needs, as keyword arguments for LossInputs."""
    g = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if ref is None else ref.dtype
    ref = torch.full((n, k), -60.0, dtype=dtype) if ref is None else ref
    more = {}
    if loss.responses == "unpaired":
        more["labels"] = torch.arange(n)[:, None] % 3 > 0
    for name in DISTRIBUTIONS:
        if name in loss.token_inputs:
            more[name] = 5 * torch.rand(n, k, generator=g, dtype=dtype)
    if "weights" in loss.token_inputs:
        more["weights"] = torch.rand(n, k, generator=g, dtype=dtype)
    if "shared_logps" in loss.token_inputs:
        more["ref_shared_logps"] = 0.6 * ref
        more["shared_logps"] = 0.6 * ref + torch.randn(n, k, generator=g, dtype=dtype)
    return more


def check_autograd(loss, x):
    """The closed-form gradient is what autograd finds."""
    logps = x.logps.clone().requires_grad_()
    (loss(replace(x, logps=logps)).sum() + 0 * logps.sum()).backward()  # which not every loss reads
    torch.testing.assert_close(loss.gradient(x), logps.grad, rtol=1e-10, atol=1e-15)


def check_central_differences(loss, x, step=1e-4, rtol=1e-6, atol=1e-8):
    """The closed-form gradient is the slope of the loss, wherever that is smooth on the scale of `step`."""
    numeric = torch.empty_like(x.logps)
    for i in range(x.logps.shape[0]):
        for j in range(x.logps.shape[1]):
            bump = torch.zeros_like(x.logps)
            bump[i, j] = step
            up, down = (loss(replace(x, logps=x.logps + sign * bump)).sum() for sign in (1, -1))
            numeric[i, j] = (up - down) / (2 * step)
    torch.testing.assert_close(loss.gradient(x), numeric, rtol=rtol, atol=atol)


def check_finite_in_float32(loss, ratio, **more):
    """Sums of -6000 and log-ratios of +-ratio are what long responses and long training give."""
    ref = torch.full((3, 2), -6000.0)
    logps = (ref + torch.tensor([[ratio, -ratio], [ratio, ratio], [-ratio, ratio]])).requires_grad_()
    x = LossInputs(logps, ref, torch.full((3, 2), 500), **(needed(loss, 3, ref=ref) | more))
    values = loss(x)
    (values.sum() + 0 * logps.sum()).backward()
    assert torch.isfinite(values).all() and torch.isfinite(logps.grad).all()
    torch.testing.assert_close(loss.gradient(x).detach(), logps.grad, rtol=1e-4, atol=1e-7)


def generic_cases(name: str) -> Iterator[tuple[Loss, LossInputs]]:
    """A loss by name on typical, extreme and, where it takes them, K > 2 responses."""
    parameters = {"beta": 0.1} if "beta" in loss_parameters(name) else {}
    for spread, seed in ((20.0, 0), (300.0, 1)):
        loss = build_loss(name, **parameters)
        x = inputs(spread=spread, seed=seed, **needed(loss, 6, seed=seed))
        if loss.uses_mismatched_responses:
            x.logps[:, 1] = x.ref_logps[:, 1] - 1  # a baseline of 0, which no small step moves
        loss.observe(x)  # a running statistic is a constant to the gradient
        yield loss, x
    if loss.responses == "list":
        yield build_loss(name, **parameters), inputs(k=4, seed=2)
        scores = torch.linspace(1, -1, 30, dtype=torch.float64).view(6, 5)
        if "temperature" in loss_parameters(name):
            parameters["temperature"] = 0.7
        yield build_loss(name, **parameters), inputs(k=5, seed=3, scores=scores)


def check_loss(name: str) -> None:
    """All that is asked of every loss. Raises AssertionError where one does not hold."""
    for loss, x in generic_cases(name):
        assert loss(x).shape == (len(x.logps),), "one number a prompt, (N,)"
        check_autograd(loss, x)
        check_central_differences(loss, x)
    for ratio in (-350.0, 350.0):
        beta = {"beta": 1.0} if "beta" in loss_parameters(name) else {}
        check_finite_in_float32(build_loss(name, **beta), ratio)


def only(*keys, **more):
    """The recorded parameters of these names, and fixed ones."""
    return lambda p: {key: p[key] for key in keys} | more


BETA, SMOOTHED = only("beta"), only("beta", "label_smoothing")

# ours: {as recorded in losses.json: the recorded parameters as ours}; a loss that nobody has recorded need not be here
GOLDEN_LOSSES = {
    "nca": {"nca_pair": BETA, "nca_k": lambda p: {"beta": p["beta"], "temperature": p["temperature_alpha"]}},
    "bco": {
        "bco_pair": only("beta", shift=0.0),
        "nca_biased": only("beta", shift=0.0),
        "bco_pair_running": BETA,
    },
    "sppo": {"sppo_hard": BETA},
    "apo_zero": {"apo_zero": BETA},
    "apo_down": {"apo_down": BETA},
    "kto": {"kto": dict, "apo_zero_unpaired": dict},
    "kto_pair": {"kto_pair": BETA},
    "dpo": {"sigmoid": BETA, "halos_DPOTrainer": BETA},
    "fdpo": {
        "sigmoid": only("beta", divergence="reverse_kl"),
        "sigmoid_forward_kl": only("beta", divergence="forward_kl"),
        "sigmoid_js": only("beta", divergence="js"),
        "sigmoid_alpha": lambda p: {"beta": p["beta"], "divergence": "alpha", "alpha": p["alpha_old"]},
    },
    "cdpo": {
        "cdpo": SMOOTHED,
        "halos_CDPOTrainer": lambda p: {"beta": p["beta"], "label_smoothing": p["epsilon"]},
        "sigmoid_forward_kl": only("beta", divergence="forward_kl", label_smoothing=0.0),
        "sigmoid_js": only("beta", divergence="js", label_smoothing=0.0),
        "sigmoid_alpha": lambda p: {
            "beta": p["beta"],
            "divergence": "alpha",
            "alpha": p["alpha_old"],
            "label_smoothing": 0.0,
        },
    },
    "robust": {"robust": SMOOTHED},
    "slic": {"hinge": BETA},
    "ipo": {"ipo": BETA, "halos_IPOTrainer": lambda p: {"beta": p["tau"]}},
    "ipo_sum": {"ipo_sum": BETA},
    "exo": {"exo_pair": SMOOTHED},
    "discopop": {"discopop": lambda p: {"beta": p["beta"], "tau": p["discopop_tau"]}},
    "dpo_norm": {"sigmoid_norm": BETA},
    "rdpo": {"rdpo": lambda p: {"beta": p["beta"], "alpha": -p["beta"] * p["gamma_beta_ratio"]}},
    "aot": {"aot": SMOOTHED},
    "aot_unpaired": {"aot_unpaired": SMOOTHED},
    "infonca": {"sigmoid": BETA, "infonca_k": lambda p: {"beta": p["beta"], "temperature": p["temperature_alpha"]}},
    "exo_list": {"exo_pair": SMOOTHED, "exo_rw_k": lambda p: {"beta": p["beta"], "temperature": p["beta_r"]}},
    "tdpo": {"tdpo2": only("beta", "alpha")},
    "tdpo1": {"tdpo1": BETA},
    "wpo": {"wpo_sigmoid": BETA},
    "ld_dpo": {"ld_sigmoid": lambda p: {"beta": p["beta"], "alpha": p["ld_alpha"]}},
    "simpo": {
        "simpo": lambda p: {"beta": p["beta"], "gamma": p["simpo_gamma"], "label_smoothing": p["label_smoothing"]},
        "halos_SimPOTrainer": lambda p: {"beta": p["beta"], "gamma": p["beta"] * p["gamma_beta_ratio"]},
    },
    "alphapo": {"alphapo": lambda p: {"beta": p["beta"], "gamma": p["simpo_gamma"], "alpha": p["alpha"]}},
    # of cpo and orpo the preference terms alone are recorded
    "cpo": {
        "cpo_sigmoid": only("beta", "label_smoothing", nll_weight=0.0),
        "sigmoid_reference_free": only("beta", nll_weight=0.0),
    },
    "orpo": {"orpo_or": only("beta", nll_weight=0.0)},
    "sft": {"sft": only()},
    "rpo": {"rpo": lambda p: {"beta": p["beta"], "alpha": p["rpo_alpha"]}},
    "mpo": {
        "mpo": lambda p: {
            "beta": p["beta"],
            **dict(zip(("preference_weight", "quality_weight", "sft_weight"), p["loss_weights"], strict=True)),
            "shift": 0.0,
        }
    },
    "dpo+sft": {"sigmoid+sft": lambda p: {"beta": p["beta"], "weights": p["loss_weights"]}},
}


def golden_loss(name: str, case: dict) -> Loss:
    """Our loss `name` as a recorded case has it."""
    return build_loss(name, **GOLDEN_LOSSES[name][case["loss"]](case["params"]))


def golden_cases(*names, section="paired"):
    """(name, case) of these losses of ours in float64; in sections that have samples, (name, sample, case)."""
    if section == "paired":
        entries = [(case,) for case in GOLDEN[section] if "dtype" not in case]
    else:
        entries = [(sample, case) for sample in GOLDEN[section] for case in sample["cases"]]
    return [(name, *entry) for name in names for entry in entries if entry[-1]["loss"] in GOLDEN_LOSSES.get(name, {})]


def golden_id(value):
    """What pytest calls a name, a sample or a case."""
    if isinstance(value, str):
        return value
    return f"{value['loss']}-{value.get('batch', value['params'])}" if "loss" in value else value.get("name", "")


def golden_pairs(*names):
    """The recorded cases of these losses (their names in losses.json) in float64."""
    return [case for case in GOLDEN["paired"] if case["loss"] in names and "dtype" not in case]


def golden_inputs(batch):
    b = {k: torch.tensor(v, dtype=torch.float64) for k, v in GOLDEN["batches"][batch].items() if k != "seed"}
    return LossInputs(
        logps=torch.stack([b["pi_w"], b["pi_l"]], 1),
        ref_logps=torch.stack([b["rho_w"], b["rho_l"]], 1),
        n_tok=torch.stack([b["len_w"], b["len_l"]], 1),
    )


def check_golden(loss, case):
    """Mean and gradient of a recorded pair batch. The recorded gradients are of the mean, ours of the sum."""
    x = golden_inputs(case["batch"])
    values = loss(x)
    assert values.mean().item() == pytest.approx(case["loss_mean"], rel=1e-12)
    expected = torch.tensor([case["grad_pi_w"], case["grad_pi_l"]], dtype=torch.float64).T
    torch.testing.assert_close(loss.gradient(x) / len(values), expected, rtol=1e-10, atol=1e-15)


def tensors(sample):
    """The inputs of a sample, but its labels."""
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in sample["inputs"].items() if k not in ("seed", "label")}


def kto_inputs(sample, case):
    """Responses and mismatched responses with labels. APO-zero on single responses is KTO with no mismatched ones."""
    t, labels = tensors(sample), torch.tensor(sample["inputs"]["label"])[:, None]
    columns = 1 if case["loss"] == "apo_zero_unpaired" else 2
    logps, ref_logps = torch.stack([t["pi"], t["pi_kl"]], 1), torch.stack([t["rho"], t["rho_kl"]], 1)
    return LossInputs(logps[:, :columns], ref_logps[:, :columns], labels=labels)


def list_inputs(sample, case):
    """K responses with rewards."""
    t = tensors(sample)
    if case["loss"] in ("nca_k", "infonca_k"):
        t["score"][:, 0] += 0.01  # the recorded implementation breaks ties so; our methods do not
    return LossInputs(t["pi"], t["rho"], scores=t["score"])


def bco_steps(sequence):
    """(loss, x, step) of a recorded training sequence of BCO, after the step's observe().

    The inputs of some steps are not recorded: eight pairs with the mean reward that their δ implies stand for them.
    """
    loss, beta = build_loss("bco", **sequence["params"]), sequence["params"]["beta"]
    seen = 0.0  # sum of the batches' mean rewards
    for n, step in enumerate(sequence["steps"], 1):
        mean = n * step["delta"] - seen
        seen += mean
        if step["batch"] in GOLDEN["batches"]:
            x = golden_inputs(step["batch"])
        else:
            ref = torch.full((8, 2), -50, dtype=torch.float64)
            x = LossInputs(ref + mean / beta, ref)
        loss.observe(x)
        yield loss, x, step


def token_inputs(fixture):
    """The recorded logits as a leaf, and the LossInputs they give: the vocabulary's logits are a head of identity."""
    data = fixture["inputs"]
    policy = torch.tensor(data["policy_logits"], dtype=torch.float64).requires_grad_()  # (6, T, V)
    reference = torch.tensor(data["ref_logits"], dtype=torch.float64)
    ids, mask = torch.tensor(data["input_ids"]), torch.tensor(data["completion_mask"]).bool()
    head, targets, mask = torch.eye(policy.shape[2], dtype=torch.float64), ids[:, 1:], mask[:, 1:]
    pi, rho = policy[:, :-1].flatten(0, 1), reference[:, :-1].flatten(0, 1)  # (6 (T-1), V)
    n_tok = mask.sum(1).view(2, 3).T  # rows 0..2 are chosen, 3..5 rejected
    shared = (mask.cumsum(1) <= n_tok.amin(1).repeat(2)[:, None]) & mask

    def total(per_token, mask):  # -> (N, 2)
        return (per_token.view_as(targets) * mask).sum(1).view(2, 3).T

    logp, ref_logp = (linear_logp(h, head, targets.flatten()) for h in (pi, rho))
    confidence = total((logp - linear_collision(pi, head, chunk=3)).detach(), mask) / n_tok
    return policy, LossInputs(
        logps=total(logp, mask),
        ref_logps=total(ref_logp, mask),
        n_tok=n_tok,
        kl=total(linear_kl(pi, head, rho, head, chunk=3), mask),
        weights=confidence.exp(),
        shared_logps=total(logp, shared),
        ref_shared_logps=total(ref_logp, shared),
    )


# inputs beside logps that carry a gradient
FIELDS = {"kl": "kl_gradient", "reverse_kl": "reverse_kl_gradient", "shared_logps": "shared_gradient"}


def logits_gradient(loss, policy, x):
    """Our closed forms chained to the policy's logits, of the mean over prompts."""
    outputs, gradients = [x.logps], [loss.gradient(x)]
    for field, method in FIELDS.items():
        if field in loss.token_inputs:
            outputs.append(getattr(x, field))
            gradients.append(getattr(loss, method)(x))
    torch.autograd.backward(outputs, [gradient.detach() / len(x.logps) for gradient in gradients])
    return policy.grad


if __name__ == "__main__":
    for name in sys.argv[1:]:
        check_loss(name)
        print(f"{name}: the closed form is autograd's and central differences', and finite in float32")
