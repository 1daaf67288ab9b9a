"""What a message repeats is short, and moves nothing on a terminal."""

import pytest

from align.errors import ECHO, LONGEST, UserError, one_line


@pytest.mark.parametrize("value", ["x" * 5000, "word " * 2000, ["a"] * 3000, {"k": "v " * 3000}, "/a" * 4000])
def test_a_value_is_cut_in_its_middle_and_the_fix_stays(value):
    said = str(UserError(f"run.toml: train.steps must be a whole number, not {value!r}; lower it"))
    assert said.startswith("run.toml: train.steps must be a whole number, not ") and said.endswith("; lower it")
    assert len(said) < 80 + ECHO and " ... " in said
    assert str(UserError(said)) == said


def test_a_message_as_a_whole_is_bounded():
    said = str(UserError("a b " * 1000 + "the end"))
    assert len(str(UserError("a value " + "[ " * 10**6 + "{ ' " * 10**6))) <= LONGEST
    assert len(said) <= LONGEST and said.endswith("the end") and len(one_line(ValueError("c d " * 999))) <= ECHO


def test_what_moves_a_terminal_is_written_out():
    said = str(UserError("a\x1b[2Jb\n\tc\u202ed\x9be\ud800f\u2028é你"))
    assert said == r"a\x1b[2Jb c\u202ed\x9be\ud800f\u2028é你"
    assert str(UserError("he said 'no', and 'yes': isn't it 'fine'?")) == "he said 'no', and 'yes': isn't it 'fine'?"
