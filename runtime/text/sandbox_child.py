"""Program of the process that renders clients' templates: JSON lines in, JSON lines out. `sandbox.py` starts it.

Jinja's sandbox keeps a template from Python's insides; the limits of the process keep it from taking time, memory,
files and processes.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """`{% generation %}`: marks an assistant's text for training; rendered as if it were not there."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """See Extension."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def make_environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def answer(environment: ImmutableSandboxedEnvironment, line: str, most: int) -> dict[str, Any]:
    """`text`, or `error` (syntax, refused, failed) with a `reason`."""
    try:
        asked = json.loads(line)
        text = environment.from_string(asked["template"]).render(asked["variables"])
        if len(text) > most:
            return {"error": "failed", "reason": f"its text has {len(text)} characters; at most {most} are taken"}
        return {"text": text}
    except TemplateSyntaxError as error:
        return {"error": "syntax", "reason": f"line {error.lineno}: {error.message}"[:300]}
    except MemoryError:
        return {"error": "failed", "reason": "it needs too much memory"}
    # A template may raise anything.
    except Exception as error:
        if type(error) is TemplateError:  # what raise_exception(...) raises
            return {"error": "refused", "reason": str(error)[:300]}
        return {"error": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    """Arguments: bytes of memory, seconds for a rendering, most characters of a text."""
    memory, seconds, most = (int(word) for word in sys.argv[1:])
    environment = make_environment()
    for line in ('{"template": "{{ strftime_now(\'%Y\') }}{{ 1 / 0 }}", "variables": {}}', "no JSON"):
        answer(environment, line, most)  # imports and opens what is needed later
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (0, 0))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        signal.alarm(seconds)
        print(json.dumps(answer(environment, line, most)), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    main()
