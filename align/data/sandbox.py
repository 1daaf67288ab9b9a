"""A process that renders chat templates, so that what one costs has an end. Started by align/data/templates.py.

A template comes with a download and can loop, recurse, write 'a' * 10**9 or compute 10**10**10. Jinja's sandbox bounds
what it may touch, not its time and memory, which the kernel does here. A line in is a request, a line out its answer, both
JSON; nothing but Jinja is imported.
"""

import json
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 0.5  # of CPU time, for each request
MEMORY = 192 * 2**20  # bytes of address space beside the interpreter's own
LONGEST = 2**24  # characters of a text


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: some published templates mark a response so. It renders as its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's filter escapes <, > and & for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(64)
def compiled(source: str) -> jinja2.Template:
    # it may read what it is given and nothing else
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return env.from_string(source)


def answer(source: str, variables: dict[str, Any] | None) -> tuple[str, str]:
    """("text", the rendered text), or ("refused", why). Without variables the template is compiled and no more."""
    try:
        template = compiled(source)
        text = template.render(variables) if variables is not None else ""
        text.encode()
    except MemoryError:
        raise
    # whatever fails in there is the template's error
    except Exception as error:
        return "refused", " ".join(str(error).split())[:1000] or type(error).__name__
    return ("text", text) if len(text) <= LONGEST else ("refused", f"it writes more than {LONGEST:,} characters")


def main() -> None:
    # they are for the process that asks, whose end is ours
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    if sys.platform == "linux":  # elsewhere the kernel does not hold to it, and time alone is bounded
        with open("/proc/self/statm") as pages:
            most = int(pages.read().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            said = json.dumps(answer(*json.loads(line)), ensure_ascii=False).encode()
        except MemoryError:
            sys.exit(1)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(said + b"\n")
        sys.stdout.buffer.flush()
