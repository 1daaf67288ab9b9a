"""eval.py --curves: training runs side by side."""

import json

import pytest

import eval as evaluation


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs in the current directory: dpo, and sft, which has no rewards. The first is measured on held-out pairs."""
    monkeypatch.chdir(tmp_path)
    for name, beta in (("dpo", 0.1), ("sft", None)):
        (tmp_path / name).mkdir()
        rows = [{"step": step, "loss": 1 / step} for step in range(1, 11)]
        if beta:
            rows = [row | {"log_ratios/margin": 3.0 * row["step"], "rewards/accuracy": 0.75} for row in rows]
            rows[4]["eval/loss"], rows[9]["eval/loss"] = 0.5, 0.25
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = f'output = "{name}"\n[loss]\nname = "{name}"\n' + (f"beta = {beta}\n" if beta else "")
        (tmp_path / name / "config.toml").write_text(settings + "[train]\nsteps = 10\n")
    return tmp_path


def test_where_runs_end_and_what_they_differ_in(runs, capsys):
    assert evaluation.main(["--curves", "dpo", "sft"]) == 0
    said = capsys.readouterr().out
    assert [line.split("  ")[0] for line in said.splitlines()[1:7]] == [
        *("loss", "log-ratio margin, nats", "reward accuracy, %", "held-out loss", "loss.name", "loss.beta")
    ]
    cells = {line.split("   ")[0].strip(): line.split("   ", 1)[1].split("   ") for line in said.splitlines()[1:7]}
    cells = {name: [cell.strip() for cell in row if cell.strip()] for name, row in cells.items()}
    assert cells["loss"] == ["0.100 at step 10"] * 2
    assert cells["log-ratio margin, nats"] == ["30.00 at step 10", "–"]
    assert cells["reward accuracy, %"] == ["75.00 at step 10", "–"]
    assert cells["held-out loss"] == ["0.250 at step 10", "–"]
    assert (cells["loss.name"], cells["loss.beta"]) == (["dpo", "sft"], ["0.1", "–"])
    assert "train.steps" not in said
    page = (runs / "runs" / "curves" / "curves.html").read_text(encoding="utf-8")
    assert page.count('class="plot curves"') == 4 and "held-out loss over training steps" in page


def test_what_is_no_run_is_refused(runs, capsys):
    for argv, message in {
        ("--curves", "dpo", "none"): "--curves none: no metrics.jsonl with a step in it; give the --output",
        ("--curves", "dpo", "--model", "dpo"): "--curves takes runs of train.py, and neither --model",
    }.items():
        assert evaluation.main(list(argv)) == 2
        assert message in capsys.readouterr().err
