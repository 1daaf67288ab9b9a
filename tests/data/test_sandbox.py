"""What a template costs has an end: one line within 2 s and 256 MiB, and the next one renders as before."""

import multiprocessing
import resource
import signal

import pytest
from conftest import refuse

from align.data.templates import ChatTemplate, rendered

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}"
COSTLY = {
    "loops": LOOPS + "{% endfor %}",
    "padding": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "doubling": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "text": "{{ 'a' * 10**9 }}",
    "list": "{{ ([0] * 10**9) | length }}",
    "power": "{{ (10 ** (10**10)) % 7 }}",
    "filter": "{{ 'a' | center(10**9) }}",
    "indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "replace": "{{ ('a' * 10**6) | replace('a', 'b' * 10**4) }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "parentheses": "{{ " + "(" * 10**5 + "1" + ")" * 10**5 + " }}",
    "blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "break": "{% break %}",
    "surrogate": "{{ '\\ud800' }}",
}


def fine():
    return ChatTemplate("{{ messages[0].content }}{% if tools %}!{% endif %}", "here").render(
        [{"content": "é\n\u2028"}]
    )


def seconds():
    """Of CPU time, which a busy machine does not stretch: of this process and of those that it has ended."""
    mine, theirs = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


@pytest.mark.parametrize("source", COSTLY.values(), ids=COSTLY)
def test_what_costs_too_much_is_one_line(source):
    rendered.end()  # all that it has rendered before would count
    assert fine() == "é\n\u2028"
    began = seconds()
    said = refuse(lambda: ChatTemplate(source, "there.jinja").render([{"content": "a"}]))
    assert seconds() - began < 2 and said.startswith("there.jinja: the chat template ") and len(said) < 400
    assert fine() == "é\n\u2028"
    assert resource.prlimit(rendered.process.pid, resource.RLIMIT_AS)[0] < 256 * 2**20


def test_a_process_of_its_own_for_a_fork():
    """Two that share one would read each other's answers."""
    fine()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for _ in range(20):
            assert set(pool.map(says, range(8))) == {f"{i} {i}" for i in range(8)}
            assert says(9) == "9 9"


def says(number):
    return f"{number} {ChatTemplate('{{ messages[0] }}', 'here').render([number])}"


def test_what_a_signal_interrupts_is_never_the_next_answer():
    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            ChatTemplate(COSTLY["loops"], "there").render([])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert rendered.process is None and fine() == "é\n\u2028"
