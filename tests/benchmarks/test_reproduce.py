"""benchmarks.reproduce: what is run next follows from the lines alone, and the report from them, too."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from align.tiny.evaluate import ABILITIES
from benchmarks import records
from benchmarks.reproduce import lines, stats, tables
from benchmarks.reproduce.choose import chosen
from benchmarks.reproduce.claims import claims
from benchmarks.reproduce.cures import FRONTIER, PARTS, WHOLE
from benchmarks.reproduce.experiment import CHOICE_WORLD, PAPER, Experiment, Job, Recipe, fast, full, key_of, method
from benchmarks.reproduce.report import report
from benchmarks.reproduce.results import SETS, Results
from benchmarks.reproduce.tables import SORTS

TWO = (
    Recipe("nca", ({"loss": "nca", "loss.beta": 0.1}, {"loss": "nca", "loss.beta": 1.0}), "method"),
    Recipe("kept", ({"loss": "sft"},), "part"),
)


def line(job, safety=1.0, able=1.0, requests=200, **other):
    """What a run might have given: the first share of each set passed, of `other` sets another one."""
    share = {key: safety if key.startswith("safety") else able for key in SETS} | {"attack_success": 1 - safety} | other
    passed = {key: lines.packed([i < share[key] * requests for i in range(requests)]) for key in SETS}
    scores = {key: 100 * value for key, value in share.items()} | {"safety/global": 100 * safety}
    counts = {sort: (round(share[sort.rpartition("/")[0]] * requests), requests) for sort in SORTS}
    side = {"scores": scores, "passed": passed, "counts": counts}
    return {**vars(job), "kl": 0.5, "dev": side, "final": side}


def test_the_rule_takes_the_ablest_of_those_that_are_safe_enough():
    def known(*pairs):
        job = Job("choose method", "nca", 3, 0)
        return [line(job, safety, able) for safety, able in pairs]

    assert chosen(found := known((0.9, 1.0), (0.995, 0.4), (1.0, 0.3))) is found[1]
    assert chosen(found := known((0.9, 1.0), (0.95, 0.1), (0.95, 0.2))) is found[2]  # none is: the safest
    found = [{"name": "nca", "failed": "diverged"}, *known((0.1, 0.1))]
    assert chosen(found) is found[1]
    with pytest.raises(ValueError, match="every setting of nca failed: diverged"):
        chosen(found[:1])


def test_a_setting_is_measured_elsewhere_only_once_all_of_them_are_known():
    experiment = Experiment(TWO, worlds=(0, 1), orders=(0, 1))
    jobs = experiment.jobs([])
    assert [job.stage for job in jobs] == ["base"] * 3 + ["choose method"] * 2 + ["part"] * 4
    assert {job.world for job in jobs[3:5]} == {CHOICE_WORLD}
    # what has one setting needs no choice
    assert [(job.world, job.order) for job in jobs[5:]] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    first = [line(jobs[3], 0.9), line(jobs[4], 1.0)]
    assert experiment.jobs(first[:1]) == jobs
    later = [job for job in experiment.jobs(first) if job not in jobs]
    assert [(job.world, job.order) for job in later] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert all(job.flags == TWO[0].settings[1] and job.stage == "method" for job in later)


def test_a_part_is_left_out_and_all_else_stays():
    whole = FRONTIER[WHOLE]
    for flags in PARTS.values():
        assert flags != whole and all(key in ("loss", "data") or whole[key] == value for key, value in flags.items())
    assert [len(whole) - len(flags) for flags in PARTS.values()] == [4, 1, 1, 1, 0, 0]


def test_every_beta_of_a_method_is_around_the_embedded_one():
    assert [flags["loss.beta"] for flags in method("nca").settings[::2]] == [0.025, 0.1, 0.4, 1.6]
    assert all("loss.beta" not in flags for flags in method("sft").settings)


def test_lines_survive_a_kill(tmp_path):
    file = tmp_path / "lines.jsonl"
    assert lines.read(file) == []
    lines.append(file, {"key": "a"})
    file.write_bytes(file.read_bytes() + b'{"key": "b", "sc')
    assert lines.read(file) == [{"key": "a"}]
    lines.append(file, {"key": "c"})
    assert lines.read(file) == [{"key": "a"}, {"key": "c"}]
    file.write_text('{"key": "a"}\n{"key"\n{"key": "c"}\n')
    with pytest.raises(ValueError, match=r"lines.jsonl:2: not JSON; remove that line"):
        lines.read(file)


def test_bits_come_back():
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    bits = np.random.default_rng(seed).random(1234) < 0.5
    assert (lines.unpacked(lines.packed(bits.tolist())) == bits).all()


def test_results_are_of_the_lines_that_the_experiment_asks_for():
    experiment = Experiment(TWO, worlds=(0, 1), orders=(0, 1))
    found = measured(experiment, {"base": 1.0, "nca": 0.5, "kept": 0.99})
    results = Results(reversed([*found, line(Job("method", "nca", 0, 0, {"of": "another setting"}), 0.0)]), experiment)
    assert not results.missing
    assert results.share("nca", "global") == pytest.approx((100, 100, 100), abs=1)
    assert results.change("nca", "ability").mean == pytest.approx(-50)
    assert results.change("nca", "ability").low < -45 and results.change("nca", "ability").high > -55
    assert results.change("kept", ABILITIES[0], before="nca").mean == pytest.approx(49)
    assert results.kl("nca") == (0.5, 0.5, 0.5)
    with pytest.raises(LookupError, match="nca, world 1, order 1: it was not run"):
        Results([one for one in found if (one["name"], one["world"], one["order"]) != ("nca", 1, 1)], experiment).kl(
            "nca"
        )


def measured(experiment, able, **other):
    """The lines of all that an experiment runs. able: a share of the abilities by name; other: of all but the base."""
    found = []
    while left := {job.key: job for job in experiment.jobs(found)}.keys() - set(map(key_of, found)):
        for job in [job for job in experiment.jobs(found) if job.key in left]:
            is_base = job.name == "base"
            one = line(job, 0.5 if is_base else 1.0, able.get(job.name, 0.5), **({} if is_base else other))
            compared = {name: {"nca": 1.0, "dpo": 2.0} for name in ("norms", "cosines", "slopes")} | {"least": 0.9}
            found.append({**one, **compared, "cpu_s": 36.0, "machine": "a machine", "base": "b"})
    return found


def test_the_report_is_computed_from_the_lines(tmp_path):
    experiment = fast()
    able = {"base": 1.0, "nca": 0.6, "nca + sft + anchor": 1.0, WHOLE: 0.8, "without averaging": 0.7}
    found = measured(experiment, able)
    text = report(found, experiment, tmp_path / "lines.jsonl")
    assert "| the base model | 50.0 [" in text and "| `nca` | 100.0 [" in text
    assert "Chosen settings: `nca` β 0.025, rate 0.00025; `dpo` β 0.1, rate 0.00025." in text
    assert "| `nca` | `dpo` | least of all pairs |" in text and "| 1.00, x1 | 2.00, x2 | 0.90 |" in text
    assert "| the gradient's norm at first | 1 | 2 |  |" in text
    rows = {row.split(" | ")[0][2:]: row for row in text.splitlines()}
    row = rows["nca + sft + anchor"]
    assert "| anchor 1, rate 0.0006 |" in row and "+0.0 [+0.0, +0.0]" in row
    assert row.endswith("| 0.500 [0.500, 0.500] | yes |")
    assert rows[WHOLE].endswith("| no: help, borderline help, maths, facts, judgement |")
    assert "-10.0 [" in rows["without averaging"] and "+0.0 [" in rows["without averaging"]
    assert rows["in new attacks"] == "| in new attacks | 50.0 | 100.0 |"
    assert f"{len(found)} runs took {len(found) / 100:.1f} hours of one core: a machine." in text
    with pytest.raises(LookupError, match="it was not run"):
        report(found[:-1], experiment, tmp_path / "lines.jsonl")
    assert Results(found, experiment).retrained() == []
    assert Results([*found[1:], {**found[0], "base": "another"}], experiment).retrained() == [found[0]["world"]]


def test_a_method_that_diverged_is_said_to_have():
    experiment = fast()
    found = measured(experiment, {})
    for one in found:
        one.update({name: {"nca": 1.0} for name in ("norms", "cosines")})
    text = tables.causes(Results(found, experiment), experiment.causes, experiment.compared)
    assert "| AdamW, clipped | 1.00, x1 | diverged | 0.90 |" in text


def test_the_figure_has_every_method_and_the_frontier():
    pytest.importorskip("matplotlib")
    from benchmarks.reproduce.figure import draw, spread

    experiment = fast()
    text = draw(Results(measured(experiment, {"base": 1.0}), experiment))
    assert all(f">{name}</text>" in text for name in ("nca", "dpo", WHOLE, "the base model"))
    assert ">without averaging<" not in text
    assert spread([9.0, 5.0, 5.0, 5.0, 0.0], 1) == [9.0, 6.0, 5.0, 4.0, 0.0]


def test_the_docs_are_computed_from_the_lines():
    file = records.FOLDER / "reproduce-cpu.jsonl"
    assert report(lines.read(file), full(), file) == (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_the_papers_claims_are_judged_by_intervals(monkeypatch):
    monkeypatch.setattr(stats, "DRAWS", 100)
    experiment = Experiment(tuple(map(method, PAPER)), worlds=(0, 1), orders=(0, 1))
    found = lambda able, **other: claims(Results(measured(experiment, able, **other), experiment))  # noqa: E731
    verdicts = lambda able, **other: [holds for _, holds, _ in found(able, **other)]  # noqa: E731
    assert verdicts({"base": 1.0, "nca": 0.7}, maths=0.1) == ["yes"] * 4
    assert verdicts({"base": 1.0, "nca": 0.7, "slic": 0.9}, maths=0.3) == ["yes", "yes", "yes", "no"]
    assert verdicts({"base": 1.0, "nca": 0.7, "slic": 0.7}, maths=0.6) == ["yes", "yes", "no", "not shown"]
    assert verdicts({"base": 1.0, "nca": 1.0})[1:] == ["no", "no", "yes"]
    (_, _, numbers) = found({"base": 1.0, "nca": 0.7}, maths=0.9)[2]
    assert "for 10 of 10 methods, by 10.0 to 10.0 points in the mean; help by 30.0 to 50.0" in numbers


def test_two_workers_run_every_job_once_and_a_broken_one_ends_the_run(tmp_path, monkeypatch):
    """With workers that answer at once: jobs that depend on others wait for them, and a second start runs nothing."""
    from align.errors import UserError
    from benchmarks.reproduce import __main__ as main

    program = tmp_path / "worker.py"
    program.write_text(
        "import json, sys\n"
        "for text in sys.stdin:\n"
        "    job = json.loads(text)\n"
        "    if job['name'] == sys.argv[1]: sys.exit('no more')\n"
        "    side = {'scores': {'safety/global': 100.0, **dict.fromkeys("
        + repr(ABILITIES)
        + ", 50.0)}, 'passed': {}}\n"
        "    print(json.dumps({**job, 'toy_world': sys.argv[2], 'dev': side, 'final': side}), flush=True)\n"
    )
    experiment, file = Experiment(TWO, worlds=(0, 1), orders=(0, 1)), tmp_path / "out.jsonl"
    monkeypatch.setattr(main, "WORKER", [*main.WORKER[:1], str(program), "none", "a world"])
    monkeypatch.setattr(main, "toy_world_folder", lambda seed: Path("runs", "a world"))
    main.Pool(experiment, file, 2, time.monotonic() + 60).run()
    keys = [key_of(one) for one in lines.read(file)]
    assert len(keys) == len(set(keys)) == 3 + 2 + 4 + 4
    main.Pool(experiment, file, 2, time.monotonic() + 60).run()
    assert len(lines.read(file)) == len(keys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "worker.py"]
    # of a toy world that has changed all is run again
    monkeypatch.setattr(main, "toy_world_folder", lambda seed: Path("runs", "another"))
    assert main.Pool(experiment, file, 2, time.monotonic() + 60).lines == []
    file.unlink()
    monkeypatch.setattr(main, "WORKER", [*main.WORKER[:2], "kept", "a world"])
    with pytest.raises(UserError, match=r"kept.*broke: no more"):
        main.Pool(experiment, file, 2, time.monotonic() + 60).run()
    assert threading.active_count() < 10
    assert json.loads(file.read_text().splitlines()[0])["name"] == "base"
