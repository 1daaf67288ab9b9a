"""The geometry of the report's figures. test_report_browser.py looks at them in a browser."""

import itertools
import random

import pytest

from align.evals.report import curves, figures, tables

SEED = 5


def test_pareto_front_against_a_sweep():
    """From the right, a point is on the front if none before it, further right, is as high; with ties and absent ones."""
    print("seed", SEED)
    rng = random.Random(SEED)
    for _ in range(200):
        points = [(rng.randrange(8), rng.randrange(8)) for _ in range(rng.randrange(1, 12))]
        expected, highest = set(), -1
        for x, column in itertools.groupby(sorted(points, reverse=True), key=lambda p: p[0]):
            top = max(y for _, y in column)
            if top > highest:
                expected.add((x, top))
                highest = top
        front = figures.pareto_front([*points, None])
        assert {points[i] for i in front} == expected
        assert len(front) == sum(p in expected for p in points)  # equal points share their place
        assert [points[i] for i in front] == sorted(points[i] for i in front)


def test_the_front_s_line_meets_no_dominated_mark():
    """On a grid, where many models share a score. Stairs along what the front dominates would run through those."""
    print("seed", SEED)
    rng = random.Random(SEED)
    checked = 0
    for _ in range(200):
        sides = [[(float(rng.randrange(0, 100, 10)), None, None) for _ in range(8)] for _ in range(2)]
        drawn = figures.tradeoff(("c", sides[0]), ("s", sides[1]), [str(i) for i in range(8)])
        corners = [tuple(map(float, corner.split())) for corner in drawn.line[1:].split("L")] if drawn.line else []
        assert {(p.x, p.y) for p in drawn.points if p.front} >= set(corners)
        for p in drawn.points:
            for (x, y), (u, v) in itertools.pairwise(corners):
                if not p.front and min(x, u) <= p.x <= max(x, u) and (x, y) != (u, v):
                    checked += 1
                    assert abs((p.x - x) * (v - y) - (p.y - y) * (u - x)) > 1.0
    assert checked > 200


def test_a_base_that_the_others_start_from_does_not_squash_their_losses():
    sft = [{"step": step, "loss": 7.0 / step} for step in range(1, 9)]
    nca = [{"step": step, "loss": 1.4 - step / 20, "rewards/accuracy": 1.0} for step in range(1, 9)]
    assert curves.without_base([sft, nca]) == [[], nca]
    loss, *_ = curves.curves(curves.without_base([sft, nca]), ["base", "nca"])
    assert [line.model for line in loss.lines] == [1] and loss.y.high < 1.5
    # where the base is one run among others, all are drawn
    for metrics in ([nca, nca], [sft, sft], [[], nca], [sft]):
        assert curves.without_base(metrics) is metrics


def test_nice_axis_holds_its_values_between_round_ticks():
    print("seed", SEED)
    rng = random.Random(SEED)
    for _ in range(500):
        values = [rng.gauss(rng.uniform(-100, 100), 10 ** rng.uniform(-3, 4)) for _ in range(3)]
        axis = figures.nice_axis("", values)
        assert axis.low <= min(values) and max(values) <= axis.high
        assert 2 <= len(axis.ticks) <= 8
        step = axis.ticks[1] - axis.ticks[0]
        mantissa = float(f"{step:.6e}".partition("e")[0])
        assert mantissa in (1, 2, 5)
        assert all(abs(tick / step - round(tick / step)) < 1e-6 for tick in axis.ticks)
        labels = [label for _, label in axis.marks()]
        assert len(set(labels)) == len(labels)
    assert figures.nice_axis("", [3.0, 3.0]).at(3.0) == 50.0
    full = figures.nice_axis("", [97.0, 100.0], limits=(0, 100))
    assert (full.high, full.at(100.0)) == (100, 100.0)


def test_labels_do_not_overlap():
    print("seed", SEED)
    rng = random.Random(SEED)
    width, height = figures.PLOT
    for _ in range(50):
        sides = [[(rng.uniform(0, 100), None, None) for _ in range(8)] for _ in range(2)]
        names = [f"falcon-11b-{i}" for i in range(8)]
        drawn = figures.tradeoff(("capability", sides[0]), ("safety", sides[1]), names)
        boxes = []
        for p in drawn.points:
            w = figures.text_width(p.label)
            left = p.x * width / 100 + p.dx - (w if p.anchor == "end" else 0)
            top = p.y * height / 100 + p.dy - 7
            boxes.append((left, top, left + w, top + 14))
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert all(box[0] >= -40 and box[2] <= width + 16 for box in boxes)


def test_tradeoff_leaves_out_models_without_a_side():
    drawn = figures.tradeoff(
        ("c", [(50.0, 40.0, 60.0), None]), ("s", [(80.0, None, None), (90.0, None, None)]), ["a", "b"]
    )
    assert [p.model for p in drawn.points] == [0] and drawn.absent == [1]
    assert drawn.points[0].y_ends is None and drawn.points[0].x_ends == (drawn.x.at(40.0), drawn.x.at(60.0))
    assert figures.tradeoff(("c", [None]), ("s", [(1.0, None, None)]), ["a"]) is None
    assert figures.tradeoff(("", []), ("s", [(1.0, None, None)]), ["a"]) is None


def test_merged_models_are_joined_in_the_order_of_their_weights():
    scores = [(float(i), None, None) for i in (10, 30, 20, 50, 40)]
    names = ["path/1", "base", "path/0.25", "path/0", "other/0.5"]
    drawn = figures.tradeoff(("c", scores), ("s", scores), names)
    at = {names[p.model]: f"{p.x} {p.y}" for p in drawn.points}
    assert drawn.merged == f"M{at['path/0']}L{at['path/0.25']}L{at['path/1']}"
    assert figures.tradeoff(("c", scores), ("s", scores), ["a", "7b", "v1", "0.5", "b"]).merged == ""


def test_histograms_hold_every_margin_once():
    print("seed", SEED)
    rng = random.Random(SEED)
    values = [[rng.gauss(m, 2) for _ in range(n)] for m, n in ((-1, 500), (3, 100))] + [[], [1000.0]]
    drawn = figures.margins(values)
    assert [h.model for h in drawn.histograms] == [0, 1, 3]
    heights = [sum(height for *_, height in h.bins) for h in drawn.histograms]
    # heights are shares of the model's own margins, so all histograms have the same area
    assert heights == pytest.approx([heights[0]] * 3, abs=0.2)
    assert drawn.histograms[0].mean == pytest.approx(sum(values[0]) / 500)
    assert drawn.histograms[1].above == sum(v > 0 for v in values[1])
    assert drawn.histograms[2].bins[0][0] == pytest.approx(100 - 100 / figures.BINS, abs=0.01)  # the outermost bin
    assert figures.margins([[], []]) is None


def test_bars_keep_the_largest_groups_in_their_order():
    rows = [
        tables.Row(f"g{i}", "%", "higher", None, [tables.Cell(50.0, 40.0, 60.0, n=i % 30), None]) for i in range(40)
    ]
    drawn = figures.bars(tables.Table("t", "category", rows))
    kept = [int(name[1:]) for name, _ in drawn.panels]
    assert kept == sorted(kept) and len(kept) == figures.GROUPS and drawn.left_out == 16
    assert min(i % 30 for i in kept) >= max(i % 30 for i in range(40) if i not in kept)
    (bar,) = drawn.panels[0][1]
    assert (bar.model, bar.width, bar.ends, bar.text) == (0, 50.0, (40.0, 60.0), "50.0")
    zero = [tables.Row("g", "", "lower", None, [tables.Cell(0.0)])]
    assert figures.bars(tables.Table("t", "category", zero)).panels[0][1][0].width == 0.0


def test_curves_shorten_long_runs_and_keep_their_ends():
    points = [(step, float(step)) for step in range(1, 1001)]
    short = curves.stretches(points)
    assert len(short) <= curves.POINTS and (short[0][0], short[-1][0]) == (1, 1000)
    assert all(x == y for x, y in short[1:-1])  # the mean of a stretch of a line is on the line
    assert curves.stretches(points[:50]) == points[:50]


def test_metrics_files(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    rows = curves.read_metrics(file)
    assert [row["step"] for row in rows] == [1, 2, 3]
    (loss,) = curves.curves([[], rows], ["base", "nca"])
    assert [line.model for line in loss.lines] == [1] and loss.lines[0].last == 1.0
    assert curves.read_metrics(tmp_path / "none.jsonl") == []
    assert curves.curves([[], []], ["base", "nca"]) == []
