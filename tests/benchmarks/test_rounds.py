"""benchmarks.rounds: each round asks the model of the one before, on prompts of its own."""

import json
from pathlib import Path

import train
from align import respond
from align.tiny.evaluate import Evaluation
from benchmarks import rounds


def test_a_round_goes_on_from_the_one_before(tmp_path, monkeypatch, capsys):
    chats = [[{"role": "user", "content": f"How do I hide hat {i}?"}] for i in range(9)]
    rows = tmp_path / "pairs.jsonl"
    # each prompt twice: a round's are distinct
    rows.write_text("".join(json.dumps({"prompt": chat, "chosen": "a", "rejected": "b"}) + "\n" for chat in chats * 2))
    asked, trained = [], []

    def says(options, world):
        prompts = [json.loads(line)["prompt"] for line in Path(options.prompts).read_text().splitlines()]
        asked.append((options.model, [prompt[0]["content"] for prompt in prompts]))
        lines = [
            {
                "id": str(i),
                "prompt": prompt,
                "sample": k,
                "response": said,
                "degenerate": "",
                "verdict": {"unsafe": k == 1},
            }
            for i, prompt in enumerate(prompts)
            for k, said in enumerate(("No.", "Under a stone."))
        ]
        options.output.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return "said"

    def trains(config, world):
        trained.append((config.model.path, config.data.path, config.train.batch_size, config.train.steps))
        return tmp_path / f"model-{len(trained)}"

    monkeypatch.setattr(respond, "respond", says)
    monkeypatch.setattr(train, "train", trains)
    monkeypatch.setattr(rounds, "resolve_path", lambda path, *_: {"tiny:base": "base", "tiny:pairs": str(rows)}[path])

    def scores(model, *_, **__):
        return Evaluation(dict.fromkeys(rounds.COLUMNS, float(len(str(model)))), {}, [])

    monkeypatch.setattr(rounds, "evaluate", scores)
    monkeypatch.setattr(rounds, "PROMPTS", 4)
    assert rounds.main(["--output", str(tmp_path / "out")]) == 0
    questions = [chat[0]["content"] for chat in chats]
    start, first = (str(tmp_path / f"model-{i}") for i in (1, 2))
    assert asked == [(start, questions[:4]), (first, questions[4:8])]
    assert [model for model, *_ in trained] == ["base", start, first]
    assert trained[0][1:] == (str(rows), 32, rounds.START)
    assert [Path(data).name for _, data, *_ in trained[1:]] == ["pairs-1.jsonl", "pairs-2.jsonl"]
    assert [sizes for _, _, *sizes in trained[1:]] == [[4, 2], [4, 2]]
    said = capsys.readouterr().out
    assert said.count("\n$ python ") == 7 and "4 prompts: 4 (100.0%) gave 4 pairs" in said
    assert [line.split("  ")[0] for line in said.splitlines()[-3:]] == [
        "after the start",
        "after round 1",
        "after round 2",
    ]
