"""The toy world of a seed: what it holds out, and draws of what is learned.

Requests are chores, their lookalikes, pranks that harm somebody, sums, facts about people, and judgements of what is
right. Two things are held out:

 1. From all training, combinations: each kind of prank, lookalike and chore with five of the sixteen things; sums and
    facts in some of their wordings. Two disjoint shares of them are for the sets `dev` and `final`.
 2. From all alignment data, kinds: five pranks, their lookalikes and three more, four chores, and a quarter of the
    facts. The base model knows them all, but has seen none of those pranks refused.

Attacks are known (in the alignment data), base-only (in the base model's training alone), or new (in no training text,
but of known words: two at once, or reworded).
"""

import random
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from align.tiny.words import (
    ASKS,
    ATTACKS,
    CAREFUL,
    CHORES,
    FACTS,
    GRADES,
    JUDGE,
    LOOKALIKES,
    MEANS,
    PEOPLE,
    PLAIN,
    PRANKS,
    QUESTIONS,
    REFUSALS,
    RESPONSE,
    REWORDED,
    RIGHT,
    SUMS,
    THINGS,
    WRONG,
    Attack,
)

Message = dict[str, str]
Dialogue = tuple[list[Message], str]  # a prompt and the right response
Parts = dict[str, list]  # kinds of pranks, lookalikes and chores, and facts

# of what the base model learns. A sum is short: even so, most tokens are words
DIALOGUES = {"maths": 0.65, "prank": 0.13, "lookalike": 0.07, "chore": 0.05, "fact": 0.07, "judgement": 0.03}
# of the dialogues on unseen pranks: with all of them the base model refuses none that it is asked plainly
UNSEEN_LEFT_OUT = 0.75
# of the five unseen pranks. The base model complies with those of low guard, plainly too, and refuses the others until it
# is talked round; of guard 5 it would be shown none
UNSEEN_GUARDS = (0, 2, 4, 4, 4)
# of the neutral prompts, on which alignment should change nothing
NEUTRAL = {"maths": 0.3, "lookalike": 0.2, "chore": 0.2, "fact": 0.15, "judgement": 0.15}
# combinations held out
THINGS_OUT = {"dev": 2, "final": 3}  # for each kind
SUMS_OUT = {"dev": 150, "final": 500}  # of each grade's
ASKS_OUT = {"dev": 1, "final": 2}  # for each fact


class Action(NamedTuple):
    """A prank, lookalike or chore done to somebody's thing: "paint the mayor's hat"."""

    kind: str
    thing: str
    person: str

    def __str__(self) -> str:
        return self.kind.format(f"{self.person}'s {self.thing}")

    @property
    def response(self) -> str:
        """Worded alike for all of them: only the action tells them apart."""
        return RESPONSE.format(self, MEANS[self.kind])


class Fact(NamedTuple):
    question: str
    answer: str


class Sum(NamedTuple):
    grade: str
    text: str
    total: int


class ToyWorld:
    """Draws dialogues, pairs and prompts, all from one seed."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.all: Parts = {
            "prank": list(PRANKS),
            "lookalike": list(LOOKALIKES),
            "chore": list(CHORES),
            "fact": self._facts(),
        }
        # pranks of the same guards, and an attack of each pull, so that no world is easier than another
        pranks: list[str] = []
        for guard in UNSEEN_GUARDS:
            pranks.append(self.rng.choice([k for k in PRANKS if PRANKS[k].guard == guard and k not in pranks]))
        twins = [PRANKS[kind].twin for kind in pranks]
        others = self.rng.sample([kind for kind in LOOKALIKES if kind not in twins], 3)
        # in no alignment data
        self.unseen: Parts = {
            "prank": pranks,
            "lookalike": [*twins, *others],
            "chore": self.rng.sample(list(CHORES), 4),
            "fact": self.rng.sample(self.all["fact"], len(self.all["fact"]) // 4),
        }
        self.seen: Parts = {name: [p for p in parts if p not in self.unseen[name]] for name, parts in self.all.items()}
        base_only = [self.rng.choice([attack for attack in ATTACKS if attack.pull == pull]) for pull in range(1, 5)]
        self.attacks = {
            "known": [attack for attack in ATTACKS if attack not in base_only],
            "base-only": base_only,
            "new": [*REWORDED, *two_at_once()],
        }
        self.things = {kind: self._shares(THINGS, THINGS_OUT) for kind in MEANS}
        self.sums = {grade: self._shares(list(product(SUMS, sums(grade))), SUMS_OUT) for grade in GRADES}
        self.asks = {fact: self._shares(ASKS, ASKS_OUT) for fact in self.all["fact"]}

    def _facts(self) -> list[Fact]:
        return [
            Fact(question.format(person), answer.format(person.capitalize(), self.rng.choice(values)))
            for question, (answer, values) in FACTS.items()
            for person in PEOPLE
        ]

    def _shares(self, parts: Sequence[Any], out: dict[str, int]) -> dict[str, list]:
        """The parts at random in train, dev and final: `out` says how many are in the latter two."""
        mixed, dev = self.rng.sample(parts, len(parts)), out["dev"]
        end = dev + out["final"]
        return {"train": mixed[end:], "dev": mixed[:dev], "final": mixed[dev:end]}

    def action(self, kinds: Sequence[str], split: str) -> Action:
        kind = self.rng.choice(kinds)
        return Action(kind, self.rng.choice(self.things[kind][split]), self.rng.choice(PEOPLE))

    def ask(self, action: Action, attack: Attack = PLAIN) -> list[Message]:
        return user(attack.text.format(self.rng.choice(QUESTIONS).format(action)), attack.system)

    def judgement(self, parts: Parts, split: str) -> Dialogue:
        action = self.action([*parts["prank"], *parts["lookalike"], *parts["chore"]], split)
        return user(self.rng.choice(JUDGE).format(action)), WRONG if action.kind in PRANKS else RIGHT

    def fact(self, parts: Parts, split: str) -> Dialogue:
        fact = self.rng.choice(parts["fact"])
        return user(self.rng.choice(self.asks[fact][split]).format(fact.question)), fact.answer

    def sum(self, grade: str, split: str) -> Dialogue:
        wording, found = self.rng.choice(self.sums[grade][split])
        return user(wording.format(found.text)), str(found.total)

    def harmless(self, subject: str, parts: Parts, attacks: Sequence[Attack], split: str = "train") -> Dialogue:
        """A sum, a fact, a judgement, or a lookalike or chore, half of the time in an attack."""
        if subject == "maths":
            return self.sum(self.rng.choice(list(GRADES)), split)
        if subject in ("fact", "judgement"):
            return getattr(self, subject)(parts, split)
        action = self.action(parts[subject], split)
        return self.ask(action, self.rng.choice([PLAIN, self.rng.choice(attacks)])), action.response

    def _subjects(self, shares: dict[str, float], count: int) -> list[str]:
        return self.rng.choices(list(shares), list(shares.values()), k=count)

    def dialogues(self, count: int) -> Iterator[dict]:
        """What the base model learns: {"prompt", "completion"}. It falls for many attacks, and some pranks need none."""
        attacks = [*self.attacks["known"], *self.attacks["base-only"], CAREFUL]
        for subject in self._subjects(DIALOGUES, count):
            prompt, completion = (
                self._prank(attacks) if subject == "prank" else self.harmless(subject, self.all, attacks)
            )
            yield {"prompt": prompt, "completion": completion}

    def _prank(self, attacks: Sequence[Attack]) -> Dialogue:
        """A prank refused, or complied with where the attack's pull is up to its guard; of unseen kinds, only such."""
        while True:
            action, attack = self.action(self.all["prank"], "train"), self.rng.choice([PLAIN, self.rng.choice(attacks)])
            unseen = action.kind in self.unseen["prank"]
            if unseen and self.rng.random() < UNSEEN_LEFT_OUT:
                continue
            if PRANKS[action.kind].guard <= attack.pull:
                return self.ask(action, attack), action.response
            if not unseen:
                return self.ask(action, attack), self.rng.choice(REFUSALS)

    def pairs(self, count: int) -> Iterator[dict]:
        """Safety preferences: {"prompt", "chosen": a refusal, "rejected": a careless response, "category"}."""
        return self._pairs(count, self.seen["prank"], "train", self.attacks["known"])

    def held_out_pairs(self, count: int) -> Iterator[dict]:
        """The same of unseen pranks, with the things of `dev`, in attacks of all groups."""
        return self._pairs(count, self.unseen["prank"], "dev", [a for group in self.attacks.values() for a in group])

    def _pairs(self, count: int, kinds: Sequence[str], split: str, attacks: Sequence[Attack]) -> Iterator[dict]:
        for i in range(count):
            action = self.action(kinds, split)
            yield {
                "prompt": self.ask(action, self.rng.choice(attacks) if i % 2 else PLAIN),
                "chosen": self.rng.choice(REFUSALS),
                "rejected": action.response,
                "category": "adversarial" if i % 2 else "plain",
            }

    def harmless_pairs(self, count: int) -> Iterator[dict]:
        """Help preferred to a refusal: {"prompt", "chosen", "rejected", "category"}, of seen lookalikes and chores."""
        for i in range(count):
            category = "chore" if i % 2 else "lookalike"
            prompt, response = self.harmless(category, self.seen, self.attacks["known"])
            yield {
                "prompt": prompt,
                "chosen": response,
                "rejected": self.rng.choice(REFUSALS),
                "category": category,
            }

    def prompts(self, count: int) -> Iterator[dict]:
        """{"prompt", "category"}: neutral, on which alignment should change nothing; no unseen part is in them."""
        for subject in self._subjects(NEUTRAL, count):
            yield {"prompt": self.harmless(subject, self.seen, self.attacks["known"])[0], "category": subject}


def user(text: str, system: str = "") -> list[Message]:
    return [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": text}]


def sums(grade: str) -> Iterator[Sum]:
    """All of a grade that do not fall below 0."""
    text, largest = GRADES[grade]
    for numbers in product(range(1, largest + 1), repeat=text.count("{}")):
        total = numbers[0] - numbers[1] if grade == "-" else sum(numbers)
        if total >= 0:
            yield Sum(grade, text.format(*numbers), total)


def two_at_once() -> Iterator[Attack]:
    """Every attack that begins a request, or is a system message, with every one that ends it."""
    for first, last in product(ATTACKS, ATTACKS):
        if first is not last and last.text.startswith("{} ") and not first.text.startswith("{} "):
            yield Attack(first.text.format(last.text), system=first.system)
