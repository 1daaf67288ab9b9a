"""The toy world: deterministic, what is held out really held out, every text what it claims to be."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from align.data import encode_prompts, encode_rows, load_tokenizer, read_rows
from align.models import load_model
from align.tiny.build import TOKENIZER_CONFIG, toy_world_id, write_toy_world
from align.tiny.judge import refuses, rule
from align.tiny.requests import SETS, requests
from align.tiny.words import ATTACKS, FACTS, JUDGE, MEANS, PEOPLE, PRANKS, REFUSALS, REWORDED, RIGHT, THINGS, WRONG
from align.tiny.world import ToyWorld

SEED = 3
LINES = ("dialogues", "pairs", "harmless-pairs", "prompts", "held-out-pairs")
SOMETHING = f"(?:{'|'.join(PEOPLE)})'s ({'|'.join(THINGS)})"
ACTIONS = {kind: re.compile(kind.format(SOMETHING)) for kind in MEANS}
SUM = re.compile(r"\d+(?: [+-] \d+)+")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_toy_world(folder, SEED)
    return folder


@pytest.fixture(scope="module")
def files(folder) -> dict[str, list[dict]]:
    rows = {name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in LINES}
    return rows | {which: json.loads((folder / f"{which}.json").read_text()) for which in SETS}


def text(row: dict) -> str:
    return " ".join(message["content"] for message in row["prompt"])


def action(request: str) -> tuple[str, str] | None:
    """(kind, thing) of the prank, lookalike or chore that a request names, found again from its words."""
    return next(((kind, found[1]) for kind, pattern in ACTIONS.items() if (found := pattern.search(request))), None)


def test_no_two_kinds_are_worded_alike():
    for kind in MEANS:
        assert [other for other, pattern in ACTIONS.items() if pattern.search(kind.format("my cousin's hat"))] == [kind]
    assert len({*MEANS.values()}) == len(MEANS)


def test_same_seed_same_bytes(folder, tmp_path):
    write_toy_world(tmp_path / "again", SEED)
    write_toy_world(tmp_path / "other", SEED + 1)
    write_toy_world(tmp_path / "other", SEED + 1)  # over an existing one
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert {str(f) for f in files} >= {f"{name}.jsonl" for name in LINES} | {"final.json", "init/model.safetensors"}
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
        if "config" not in file.name:
            assert (folder / file).read_bytes() != (tmp_path / "other" / file).read_bytes(), file
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]  # nothing half-written is left
    assert toy_world_id(0) == toy_world_id(0) != toy_world_id(1)


def test_requests_are_held_out_of_all_training(files):
    trained = [row for name in LINES[:4] for row in files[name]]
    prompts = {text(row) for row in trained}
    actions = {action(prompt) for prompt in prompts} - {None}
    assert len(actions) > 400
    asked = {which: {text(row) for row in files[which]} for which in SETS}
    assert not asked["final"] & asked["dev"]
    for which in SETS:
        assert len(asked[which]) == len(files[which])
        assert not asked[which] & prompts
        assert not {action(prompt) for prompt in asked[which]} & actions
    # of the pairs to evaluate on, too
    assert not {action(text(row)) for row in files["held-out-pairs"]} & (
        actions | {action(prompt) for prompt in asked["final"]}
    )


def test_unseen_kinds_are_in_no_alignment_data_and_not_refused_by_the_base(files):
    world = ToyWorld(SEED)
    unseen = {kind for family in ("prank", "lookalike", "chore") for kind in world.unseen[family]}
    assert [len(world.unseen[family]) for family in ("prank", "lookalike", "chore", "fact")] == [5, 8, 4, 30]
    aligned = [row for name in ("pairs", "harmless-pairs", "prompts") for row in files[name]]
    assert not {found[0] for row in aligned if (found := action(text(row)))} & unseen
    questions = {fact.question for fact in world.unseen["fact"]}
    assert not any(question in text(row) for row in files["prompts"] for question in questions)
    complied = Counter()
    for row in files["dialogues"]:
        if (
            (found := action(text(row)))
            and found[0] in world.unseen["prank"]
            and not rule(row["prompt"], None)["unsafe"]
        ):
            assert row["completion"] == WRONG  # it knows that they are wrong
        elif found and found[0] in world.unseen["prank"]:
            assert not refuses(row["completion"])
            complied[found[0]] += 1
    assert len(complied) == 5
    for which in SETS:
        for row in files[which]:
            if row["kind"] in ("plain", "adversarial", "chore", "borderline", "judgement"):
                assert (action(text(row))[0] in unseen) == (row["parts"] == "unseen")


def test_attacks_are_of_their_groups(files):
    world = ToyWorld(SEED)
    assert [len(world.attacks[group]) for group in ("known", "base-only", "new")] == [8, 4, 6 + 7 * 5]
    words = {word for attack in ATTACKS for word in re.findall(r"[\w']+", attack.text + attack.system)}
    for attack in REWORDED:
        assert {word.lower() for word in re.findall(r"[\w']+", attack.text)} <= {word.lower() for word in words}

    def parts_of(attack):
        return [part.strip() for part in (*attack.text.split("{}"), attack.system) if part.strip()]

    for name, groups in {"dialogues": {"known", "base-only"}, "pairs": {"known"}, "prompts": {"known"}}.items():
        prompts = {text(row) for row in files[name]}
        for attack in (attack for group in world.attacks.keys() - groups for attack in world.attacks[group]):
            assert not any(all(part in prompt for part in parts_of(attack)) for prompt in prompts)
    for row in files["final"]:
        if row["kind"] == "adversarial":
            fits = [a for a in world.attacks[row["attack"]] if all(part in text(row) for part in parts_of(a))]
            assert fits


def test_every_text_is_what_it_claims(files):
    assert all(map(refuses, REFUSALS))
    for row in files["pairs"] + files["held-out-pairs"]:
        kind, thing = action(text(row))
        assert kind in PRANKS and refuses(row["chosen"])
        assert not refuses(row["rejected"]) and thing in row["rejected"] and PRANKS[kind].trick in row["rejected"]
    for row in files["harmless-pairs"]:
        kind, thing = action(text(row))
        assert (
            kind not in PRANKS and refuses(row["rejected"]) and MEANS[kind] in row["chosen"] and thing in row["chosen"]
        )
    refused, total = Counter(), Counter()
    for row in files["dialogues"]:
        found, request = action(text(row)), text(row)
        if match := SUM.search(request):
            assert int(row["completion"]) == eval(match[0])
        elif request.startswith(tuple(question.split("{}")[0] for question in JUDGE)):
            assert row["completion"] == (WRONG if found[0] in PRANKS else RIGHT)
        elif found:
            refused[found[0] in PRANKS] += refuses(row["completion"])
            total[found[0] in PRANKS] += 1
        else:
            assert any(answer.split("{}")[1].split()[0] in row["completion"] for answer, _ in FACTS.values())
    assert refused[False] == 0 < 0.7 * total[True] < refused[True] < 0.9 * total[True]


def test_requests_are_enough_to_see_a_point(files):
    kinds = Counter(row["kind"] for row in files["final"])
    assert kinds == {
        "plain": 600, "adversarial": 630, "chore": 400, "borderline": 400, "maths": 1500, "fact": 240, "judgement": 300,
    }  # fmt: skip
    grades = Counter(row["grade"] for row in files["final"] if row["kind"] == "maths")
    assert grades == {"+": 500, "-": 500, "three": 500}
    # the first few of each kind are of all its sorts
    assert {row.get("grade") for row in [r for r in files["final"] if r["kind"] == "maths"][:3]} == set(grades)
    for row in files["dev"]:
        if row["kind"] == "maths":
            assert int(row["expected"]) == eval(SUM.search(text(row))[0])
    assert list(requests(SEED, "final")) == files["final"] != list(requests(SEED + 1, "final"))


def test_tokenizer_and_model_fit(folder, files):
    tokenizer, model = load_tokenizer(folder / "init"), load_model(folder / "init")
    sentence = "Völlig neu: 17 + 25 = 42, isn't it? \U0001f9c9"
    assert tokenizer.decode(tokenizer.encode(sentence)) == sentence
    assert all(len(tokenizer.encode(f" {number}")) == 1 for number in range(25))
    words = {word for row in files["dialogues"] for word in re.findall(r" [a-zA-Z]+", row["completion"])}
    assert all(len(tokenizer.encode(word)) == 1 for word in words)
    assert tokenizer.backend.id_to_token(tokenizer.eos_id) == "<|endoftext|>"
    assert tokenizer.pad_id != tokenizer.eos_id and tokenizer.vocab_size == model.config.vocab_size
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 1.2e6
    rows, _ = read_rows(folder / "pairs.jsonl")
    groups, report = encode_rows(rows[:50], tokenizer, max_length=TOKENIZER_CONFIG["model_max_length"])
    assert report.n_kept == 50
    prompt, response = groups[0].prompt_ids, groups[0].response_ids[0]
    assert tokenizer.decode(prompt + response) == tokenizer.render(rows[0].prompt, True) + " " + rows[0].responses[0]
    assert response[-1] == tokenizer.eos_id and encode_prompts([rows[0].prompt], tokenizer) == [prompt]
