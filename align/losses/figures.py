"""Figures of the losses: value and closed-form slopes over the margin, and both over the two log-ratios.

python -m align.losses.figures [--output docs/losses/figures]

It also rewrites the tables of docs/losses.md. matplotlib is needed: pip install '.[figures]'.

All figures share their axes. β is 0.1 for losses of sums and 2 for losses of per-token means, which at 20 tokens a
response is the same. Each loss is multiplied by one number, which is in its title, so that the larger of its two slopes
at policy = reference is DPO's, β/2: curves are compared at the learning rates that give them DPO's first step. An anchor
has no slope there and is drawn as β D.
"""

import argparse
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from align import command
from align.losses import LOSSES, Loss, LossInputs, build_loss, loss_parameters
from align.losses.pages import MAP, PAGES, page, with_tables
from align.losses.svg import small

BETA, TOKENS, LEVEL = 0.1, 20, -60.0  # of sums; a response's tokens; its log-prob under the reference, 3 nats a token
REACH = 50.0  # both log-ratios run from -REACH to REACH nats, a reward of 5 either way
PER_TOKEN = ("dpo_norm", "ipo", "simpo", "alphapo")
HALF = 0.5  # share of a response's log-probs and log-ratio in its shared tokens, for LD-DPO

# for the losses that sort: four other pairs stand still. Their log-ratios, both responses alike, and reference margins
OTHERS = {
    "aot": ((0.0, 0.0, 0.0, 0.0), (-40.0, -20.0, 20.0, 40.0)),
    "aot_unpaired": ((-20.0, -10.0, 10.0, 20.0), (0.0, 0.0, 0.0, 0.0)),
    "kto_pair": ((), ()),
}

MARGIN = "margin Δ_w − Δ_l in nats"
CHOSEN, REJECTED, VALUE, PALE = "#1f6fb2", "#c8501e", "#222222", "#b9b9b9"
LEVELS = [-10, -5, -2, -1, -0.5, -0.2, 0, 0.2, 0.5, 1, 2, 5, 10]
NORM = matplotlib.colors.BoundaryNorm(LEVELS, 256, extend="both")
STYLE = {
    "svg.hashsalt": "align",
    "svg.fonttype": "none",  # text as text: its outlines would be most of a file
    "path.simplify_threshold": 0.4,  # of a pixel
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "xtick.bottom": False,
    "ytick.left": False,
    "lines.linewidth": 1.5,
}


@dataclass
class Panel:
    """A loss to draw, and the circumstances of its responses."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)  # beside beta
    tokens: tuple[float, float] = (TOKENS, TOKENS)
    kl: tuple[float, float] = (0.0, 0.0)  # TDPO's D of the two responses
    baseline: float = 0.0  # nats by which mismatched responses became likelier, for KTO's reference point
    note: str = ""

    @property
    def loss(self) -> Loss:
        beta = 2.0 if self.name in PER_TOKEN else BETA
        known = loss_parameters(self.name)
        return build_loss(self.name, **({"beta": beta} if "beta" in known else {}), **self.parameters)

    @property
    def title(self) -> str:
        known = loss_parameters(self.name)
        betas = [f"β {2 if self.name in PER_TOKEN else BETA:g}"] if "beta" in known else []
        return ", ".join([self.name, *betas, *([self.note] if self.note else [])])

    def divergence(self, ratios: Tensor, reverse: bool = False) -> Tensor:
        """Anchor's D of responses with these log-ratios (N, 2), spread evenly over their tokens.

        The other tokens of the vocabulary share what is left as they did under the reference, and count as one.
        """
        was = torch.full_like(ratios, LEVEL / TOKENS).exp()
        now = was * (ratios / TOKENS).exp()
        if reverse:
            was, now = now, was
        return TOKENS * (was * (was / now).log() + (1 - was) * ((1 - was) / (1 - now)).log())

    def inputs(self, ratios: Tensor) -> LossInputs:
        """Prompts with these log-ratios (N, 2); for kto, 2N prompts with a response and a label each."""
        n = len(ratios)
        ref = torch.full_like(ratios, LEVEL)
        if LOSSES.get(self.name, Loss).responses == "unpaired":
            mismatched = torch.full((2 * n, 1), self.baseline, dtype=ratios.dtype)
            own = torch.cat([ratios.reshape(-1, 1), mismatched], 1)
            labels = torch.tensor([True, False]).repeat(n)[:, None]
            return LossInputs(own + LEVEL, torch.full_like(own, LEVEL), labels=labels)
        return LossInputs(
            logps=ref + ratios,
            ref_logps=ref,
            n_tok=ratios.new_tensor(self.tokens).expand(n, 2),
            tokens_per_prompt=self.tokens[0],
            kl=self.divergence(ratios) if self.name == "anchor" else ratios.new_tensor(self.kl).expand(n, 2),
            reverse_kl=self.divergence(ratios, reverse=True),
            weights=torch.ones_like(ratios),
            shared_logps=HALF * (ref + ratios),
            ref_shared_logps=HALF * ref,
        )

    def among_others(self, ratio: Tensor) -> LossInputs:
        """A batch of one pair with this log-ratio (2,), and the others."""
        levels, margins = (ratio.new_tensor(values) for values in OTHERS[self.name])
        ref = LEVEL + torch.stack([margins / 2, -margins / 2], 1)
        return LossInputs(
            torch.cat([LEVEL + ratio[None], ref + levels[:, None]]),
            torch.cat([torch.full_like(ratio[None], LEVEL), ref]),
        )

    def measure(self, ratios: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (N,) and slopes (N, 2) at these log-ratios (N, 2)."""
        loss = self.loss
        if self.name in OTHERS:
            batches = [self.among_others(ratio) for ratio in ratios]
            values = torch.stack([loss(x).sum() for x in batches])
            return values, torch.stack([loss.gradient(x)[0] for x in batches])
        if self.name == "anchor":  # its slope in a log-ratio is that of D
            ratios = ratios.clone().requires_grad_()
            values = loss(self.inputs(ratios))
            return values.detach(), torch.autograd.grad(values.sum(), ratios)[0]
        loss.observe(self.inputs(torch.zeros_like(ratios)))  # running statistics as in the first step
        x = self.inputs(ratios)
        values, slopes = loss(x), loss.gradient(x)
        if "shared_logps" in loss.token_inputs:
            slopes = slopes + HALF * loss.shared_gradient(x)
        if x.labels is not None:
            return values.view(-1, 2).sum(1), slopes[:, 0].view(-1, 2)
        return values, slopes

    def scaled(self, ratios: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Change of the loss from policy = reference (N,) and slopes over β (N, 2), both times `factor`."""
        values, slopes = self.measure(ratios)
        start, _ = self.measure(torch.zeros(1, 2, dtype=ratios.dtype))
        return (self.factor * (values - start)).numpy(), (self.factor / BETA * slopes).numpy()

    @property
    def factor(self) -> float:
        _, slopes = self.measure(torch.zeros(1, 2, dtype=torch.float64))
        # an anchor, a mean per token, has no slope there: β times the sum
        return BETA / 2 / slopes.abs().max().item() if self.loss.moves else BETA * TOKENS


def panels(stem: str) -> list[Panel]:
    """What the figure of a page shows: its losses, and some of them under other circumstances."""
    own = [DEFAULTS.get(name, Panel(name)) for name in LOSSES if page(name) == stem]
    return own + MORE.get(stem, [])


DEFAULTS = {
    "rdpo": Panel("rdpo", tokens=(40, 20), note="|y_w| 40, |y_l| 20"),
    "dpop": Panel("dpop", note="λ 50"),
    "discopop": Panel("discopop", note="τ 0.05"),
    "fdpo": Panel("fdpo", note="js"),
    "aot": Panel("aot", note="1 pair of 5"),
    "aot_unpaired": Panel("aot_unpaired", note="1 pair of 5"),
}
MORE = {
    "divergences": [
        Panel("fdpo", {"divergence": "alpha"}, note="alpha 0.5"),
        Panel("fdpo", {"divergence": "forward_kl"}, note="forward_kl"),
        Panel("fdpo", {"divergence": "reverse_kl"}, note="reverse_kl"),
        Panel("exo", {"divergence": "js"}, note="js"),
    ],
    "unpaired": [Panel("kto", baseline=20.0, note="KL 20 nats")],
    "token-level": [
        Panel("tdpo", kl=(0.0, 40.0), note="D_l 40 nats"),
        Panel("anchor", {"direction": "reverse"}, note="reverse"),
    ],
    "mixtures": [Panel("nca+sft", {"beta": BETA, "weights": [1.0, 0.5]}, note="β 0.1, weights 1, 0.5")],
}


def along_the_margin(points: int = 161) -> Tensor:
    """Log-ratios (N, 2) that move apart symmetrically, through policy = reference."""
    half = torch.linspace(-REACH, REACH, points, dtype=torch.float64)
    return torch.stack([half, -half], 1)


def grid(points: int) -> tuple[np.ndarray, Tensor]:
    """An axis of log-ratios, and the square of all their pairs as (points², 2), Δ_l running slowest."""
    axis = torch.linspace(-REACH, REACH, points, dtype=torch.float64)
    rejected, chosen = torch.meshgrid(axis, axis, indexing="ij")
    return axis.numpy(), torch.stack([chosen.reshape(-1), rejected.reshape(-1)], 1)


def frame(ax: Axes, low: float, high: float) -> None:
    """Axes over the margin."""
    ax.axhline(0, color=PALE, linewidth=0.6, zorder=0)
    ax.axvline(0, color=PALE, linewidth=0.6, zorder=0)
    ax.set(xlim=(-2 * REACH, 2 * REACH), ylim=(low, high), xticks=[-100, 0, 100])


def draw_value(ax: Axes, panel: Panel) -> None:
    ratios = along_the_margin()
    margin = (ratios[:, 0] - ratios[:, 1]).numpy()
    frame(ax, -4, 8)
    ax.set_yticks([-4, 0, 4, 8])
    ax.plot(margin, Panel("dpo").scaled(ratios)[0], color=PALE, linewidth=2.5)
    ax.plot(margin, panel.scaled(ratios)[0], color=VALUE)


def draw_slopes(ax: Axes, panel: Panel) -> None:
    ratios = along_the_margin()
    margin = (ratios[:, 0] - ratios[:, 1]).numpy()
    frame(ax, -1.5, 1.5)
    ax.plot(margin, Panel("dpo").scaled(ratios)[1], color=PALE, linewidth=2.5)
    slopes = panel.scaled(ratios)[1]
    ax.plot(margin, slopes[:, 0], color=CHOSEN)
    ax.plot(margin, slopes[:, 1], color=REJECTED)
    ax.set_yticks([-1, 0, 1])


def draw_map(ax: Axes, panel: Panel, points: int, arrows: int) -> None:
    """Bands of the loss over both log-ratios, and where gradient descent goes: strokes as long as the force."""
    axis, ratios = grid(points)
    change = panel.scaled(ratios)[0].reshape(points, points)
    step = axis[1] - axis[0]
    edges = (-REACH - step / 2, REACH + step / 2) * 2
    ax.imshow(change, cmap="RdYlBu_r", norm=NORM, origin="lower", extent=edges, interpolation="none")
    ax.plot(0, 0, "+", color=VALUE, markersize=5, markeredgewidth=0.8)
    at = torch.linspace(-REACH, REACH, 2 * arrows + 1, dtype=torch.float64)[1::2]
    rejected, chosen = torch.meshgrid(at, at, indexing="ij")
    base = torch.stack([chosen.reshape(-1), rejected.reshape(-1)], 1)
    push = -panel.scaled(base)[1]
    force = np.linalg.norm(push, axis=1, keepdims=True)
    tip = base.numpy() + push / np.maximum(force, 1e-12) * np.minimum(force, 1.5) / 1.5 * 1.7 * REACH / arrows
    gap = np.full_like(tip, np.nan)
    strokes = np.stack([base.numpy(), tip, gap], 1).reshape(-1, 2)
    ax.plot(*strokes.T, color=VALUE, linewidth=0.7)
    dots = np.stack([base.numpy(), base.numpy() + 0.2, gap], 1).reshape(-1, 2)  # one path, not a marker each
    ax.plot(*dots.T, color=VALUE, linewidth=2.2, solid_capstyle="round")
    ax.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[-50, 0, 50], yticks=[-50, 0, 50], aspect="equal")


def explain(figure: Figure, *kinds: str) -> None:
    """A legend over the whole figure."""
    handles: dict[str, list[Artist]] = {
        "value": [Line2D([], [], color=VALUE, label="loss, less its value at policy = reference")],
        "slopes": [
            Line2D([], [], color=CHOSEN, label="slope dL/dℓ_w over β"),
            Line2D([], [], color=REJECTED, label="slope dL/dℓ_l over β"),
        ],
        "dpo": [Line2D([], [], color=PALE, linewidth=2.5, label="the same of dpo")],
        "map": [
            Line2D([], [], color=VALUE, marker="o", markersize=2.2, linewidth=0.7, markevery=2, label="descent"),
            Patch(color=matplotlib.colormaps["RdYlBu_r"](0.15), label="loss below its value at +, policy = reference"),
            Patch(color=matplotlib.colormaps["RdYlBu_r"](0.85), label="above it"),
        ],
    }
    shown = [handle for kind in kinds for handle in handles[kind]]
    figure.legend(handles=shown, loc="outside upper left", ncols=4, frameon=False)


def draw_page(stem: str) -> Figure:
    """One row a loss: value, slopes, map."""
    rows = panels(stem)
    figure = Figure(figsize=(9, 2.2 * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False, sharex="col", sharey="col", width_ratios=[1.25, 1.25, 1])
    for row, panel in zip(axes, rows, strict=True):
        draw_value(row[0], panel)
        draw_slopes(row[1], panel)
        draw_map(row[2], panel, points=41, arrows=6)
        row[0].set_title(f"{panel.title}   × {panel.factor:.3g}", fontweight="bold", fontsize=10)
        row[2].set_ylabel("Δ_l in nats")
    for ax, label in zip(axes[-1], (MARGIN, MARGIN, "Δ_w in nats"), strict=True):
        ax.set_xlabel(label)
    explain(figure, "value", "slopes", "dpo", "map")
    return figure


def draw_overview() -> Figure:
    """The slopes of all losses."""
    rows = [DEFAULTS.get(name, Panel(name)) for name in LOSSES]
    columns = 6
    figure = Figure(figsize=(11, 1.75 * -(-len(rows) // columns) + 0.6), layout="constrained")
    axes = figure.subplots(-(-len(rows) // columns), columns, sharex=True, sharey=True)
    for ax, panel in zip(axes.flat, rows, strict=False):
        draw_slopes(ax, panel)
        ax.label_outer()
        ax.set_title(panel.name + (" †" if LOSSES[panel.name].in_paper else ""), fontweight="bold")
    for ax in axes.flat[len(rows) :]:
        ax.set_axis_off()
    figure.supxlabel(MARGIN, fontsize=8)
    explain(figure, "slopes", "dpo")
    return figure


def figures() -> Iterator[tuple[str, Figure]]:
    """Every figure and the name of its file."""
    yield "overview", draw_overview()
    for stem in dict.fromkeys(PAGES.values()):
        yield stem, draw_page(stem)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=MAP.parent / "losses" / "figures", help="folder of the SVGs")
    output = parser.parse_args(argv).output
    output.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, figure in figures():
            svg = io.StringIO()
            figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
            path = output / f"{name}.svg"
            path.write_text(small(svg.getvalue()), encoding="utf-8")
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    if MAP.exists():
        MAP.write_text(with_tables(MAP.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    command.run(main)
