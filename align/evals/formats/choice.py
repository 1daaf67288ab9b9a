"""Formats of multiple choice: a data row to an item, for benchmarks of kind "choice".

Nothing is generated: the model says how likely each choice is after the prompt. An item has "prompt", the text that
all choices share, "choices" [{"context", "text"}, ...], and "gold", the index of the right one, or "golds", 1 or 0 for
each. What is scored is `text` after prompt + context; context is "" but for winogrande, where the contexts differ and
the text is the same. Texts and how they are joined follow the field's evaluation harnesses, so that scores
compare: a prompt ends without a space, and a choice begins with the space between them.
"""

import re
from typing import Any

from align.errors import UserError
from align.evals.files import text_of, texts_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def choice_item(prompt: str, texts: list[str], gold: int, category: str = "") -> dict:
    choices = [{"context": "", "text": f" {text}"} for text in texts]
    return {"prompt": prompt, "choices": choices, "gold": gold} | ({"category": category} if category else {})


def index(value: Any, count: int, key: str, where: str) -> int:
    """An index in a file: a number or its text, from 0."""
    text = str(value)
    if not text.isdecimal() or not int(text) < count:
        hint = "; a test split comes without the solutions" if value in (None, "", "-1", -1) else ""
        raise UserError(f"{where}: {key} must be one of 0 to {count - 1}, not {value!r}{hint}")
    return int(text)


def arc(row: dict, where: str, options: dict) -> dict:
    """ARC, Clark et al. 2018, arXiv 1803.05457: Easy or Challenge.

    {"question", "choices": {"text", "label"}, "answerKey"}, or {"question": {"stem", "choices": [{"text", "label"}]},
    "answerKey"} as first published. Labels are letters in most rows and digits from 1 in some. The prompt is
    "Question: ...\\nAnswer:" and a choice is its whole text.
    """
    question, choices = row.get("question"), row.get("choices")
    if isinstance(question, dict):
        stem = question
        question, choices = stem.get("stem"), stem.get("choices")
    if isinstance(choices, list):
        choices = {key: [c.get(key) for c in choices if isinstance(c, dict)] for key in ("text", "label")}
    if not isinstance(choices, dict):
        raise UserError(f"{where}: choices must have texts and labels, not {choices!r}")
    texts = texts_of({"choices.text": choices.get("text")}, "choices.text", where)
    labels, key = choices.get("label"), row.get("answerKey")
    if not isinstance(labels, list) or len(labels) != len(texts) or key not in labels:
        raise UserError(f"{where}: answerKey {key!r} is none of the labels {labels!r} of {len(texts)} choices")
    prompt = f"Question: {text_of({'question': question}, 'question', where)}\nAnswer:"
    return choice_item(prompt, texts, labels.index(key))


def hellaswag(row: dict, where: str, options: dict) -> dict:
    """HellaSwag, Zellers et al. 2019, arXiv 1905.07830: {"ctx_a", "ctx_b" or "ctx", "endings", "activity_label", "label"}.

    The prompt is "activity: context", the second half of the context with a capital first letter only; the remains of
    WikiHow's markup, in brackets, are taken out of prompt and endings.
    """
    if row.get("ctx_a") is not None and row.get("ctx_b") is not None:
        context = f"{text_of(row, 'ctx_a', where)} {str(row['ctx_b']).capitalize()}"
    else:
        context = text_of(row, "ctx", where)
    endings = [without_brackets(ending) for ending in texts_of(row, "endings", where)]
    if not all(endings):
        raise UserError(f"{where}: an ending is empty but for its brackets")
    prompt = without_brackets(f"{text_of(row, 'activity_label', where)}: {context}")
    return choice_item(prompt, endings, index(row.get("label"), len(endings), "label", where))


def without_brackets(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def mmlu(row: dict, where: str, options: dict) -> dict:
    """MMLU, Hendrycks et al. 2020, arXiv 2009.03300: a .csv file for each subject, without a header: question, A, B, C,
    D, answer; or {"question", "choices", "answer": index, "subject"}.

    The prompt lists the choices by letter and ends in "Answer:"; a choice is its letter. Above it stands a line that
    names the subject, then the worked examples. The subject is the category; where no column says it, the file's name.
    """
    texts = texts_of(row, "choices", where) if "choices" in row else [text_of(row, key, where) for key in LETTERS[:4]]
    right = row.get("answer")
    if isinstance(right, str) and right.strip() in LETTERS[: len(texts)] and right.strip():
        right = LETTERS.index(right.strip())
    gold = index(right, len(texts), "answer", where)
    subject = row.get("subject") or re.sub("_(test|val|dev)$", "", row.get("file", ""))
    listed = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, texts, strict=False))
    prompt = f"{text_of(row, 'question', where).strip()}\n{listed}Answer:"
    return choice_item(prompt, list(LETTERS[: len(texts)]), gold, subject.replace("_", " "))


def mmlu_header(item: dict) -> str:
    about = f" about {item['category']}" if item.get("category") else ""
    return f"The following are multiple choice questions (with answers){about}.\n\n"


def truthfulqa(row: dict, where: str, options: dict) -> dict:
    """TruthfulQA, Lin et al. 2021, arXiv 2109.07958: {"question", "mc1_targets", "mc2_targets"}, each {"choices",
    "labels"} or {choice: 1 or 0}.

    targets "mc1": one choice is right, and accuracy counts. "mc2": several are, and the score is the share of the
    probability of all choices that falls on them. The prompt is "Q: ...\\nA:". Published scores have the paper's six
    question and answer pairs in front of it: give them as a text file, with the option preamble, to compare with those.
    """
    key = f"{options['targets']}_targets"
    targets = row.get(key)
    if isinstance(targets, dict) and "choices" not in targets:
        targets = {"choices": list(targets), "labels": list(targets.values())}
    if not isinstance(targets, dict):
        raise UserError(f"{where}: {key} must be choices and labels, not {targets!r}")
    texts = texts_of({key: targets["choices"]}, key, where)
    labels = targets.get("labels")
    if not isinstance(labels, list) or len(labels) != len(texts) or not all(n in (0, 1) for n in labels):
        raise UserError(f"{where}: the labels of {key} must be a 1 or 0 for each choice")
    if not 0 < sum(labels) < len(labels):
        raise UserError(f"{where}: {key} must have right and wrong choices")
    prompt = f"Q: {text_of(row, 'question', where).strip()}\nA:"
    item = choice_item(prompt, texts, labels.index(1))
    if options["targets"] == "mc1":
        if sum(labels) != 1:
            raise UserError(f"{where}: mc1_targets must have one right choice, not {sum(labels)}")
        return item
    item["golds"] = [int(one) for one in labels]
    del item["gold"]
    return item


def winogrande(row: dict, where: str, options: dict) -> dict:
    """Winogrande, Sakaguchi et al. 2019, arXiv 1907.10641: {"sentence" with a _, "option1", "option2", "answer": 1 or 2}.

    Partial scoring (Trinh and Le 2018, arXiv 1806.02847): the option replaces _, and what is scored is the
    rest of the sentence, the same text after two contexts.
    """
    sentence = text_of(row, "sentence", where)
    before, blank, rest = sentence.partition("_")
    if not blank or not rest.strip():
        raise UserError(f"{where}: sentence must have a _ and go on after it, not {sentence!r}")
    options_ = [text_of(row, key, where) for key in ("option1", "option2")]
    right = str(row.get("answer"))
    if right not in ("1", "2"):
        hint = "; a test split comes without the solutions" if right in ("", "None") else ""
        raise UserError(f"{where}: answer must be 1 or 2, not {row.get('answer')!r}{hint}")
    choices = [{"context": before + option, "text": f" {rest.strip()}"} for option in options_]
    return {"prompt": "", "choices": choices, "gold": int(right) - 1}
