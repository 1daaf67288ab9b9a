"""What a judge reads of a record: what the response says, without the thinking that a reasoning model writes before it.

A model may weigh a refusal or a wrong number in its thoughts and then say something else, and what it says is what the
user gets. So no judge reads between <think> and </think>, or what other models write for them.
"""

import re

# Qwen, DeepSeek and others; Magistral; Kimi; Command; Seed. A name of the first kind may have a prefix, as <seed:think>
_TAGS = [
    (r"<(?:\w+:)?(?:think|thinking|thought|reasoning)>", r"</(?:\w+:)?(?:think|thinking|thought|reasoning)>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
]
# gpt-oss: what it says follows the last header of the channel "final"
_FINAL = re.compile(r"(?s)\A.*<\|channel\|>final(?:[^<]*)<\|message\|>|<\|(?:return|end)\|>\s*\Z")
_ANALYSIS = re.compile(r"\A\s*(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)\b")
_OPEN, _CLOSE = ("|".join(f"(?:{tag})" for tag in side) for side in zip(*_TAGS, strict=True))
_THOUGHT = re.compile(rf"(?s)(?<!`)(?:{_OPEN}).*?(?:{_CLOSE}|\Z)(?!`)")
_LEFT_OPEN = re.compile(rf"(?s)\A(?:(?!{_OPEN}).)*?(?<!`)(?:{_CLOSE})(?!`)")


def without_thinking(response: str) -> str:
    """The response without its thoughts; "" if they never end, so that nothing was said.

    A closing tag alone ends thoughts that begin with the response: templates such as DeepSeek-R1's open them in the
    prompt. Tags in backquotes are talked about, and stay.
    """
    if _ANALYSIS.search(response):
        return _FINAL.sub("", response).strip() if "<|channel|>final" in response else ""
    said = _THOUGHT.sub("", _LEFT_OPEN.sub("", response, count=1))
    return said.strip() if said != response else response


def response_of(record: dict) -> str:
    """What a record's response says. Records written before "response" was its name have it as "answer"."""
    return without_thinking(record["response"] if "response" in record else record["answer"])
