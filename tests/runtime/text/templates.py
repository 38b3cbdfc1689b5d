"""Chat templates of the kinds that models come with, for tests of conversations with tools."""

from __future__ import annotations

from shoal.runtime.text.tokenizer import Tokenizer

from .test_control_tokens import tokenizer

HERMES = (
    "{%- if tools %}<|im_start|>system\n"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}# Tools\n"
    "{%- for tool in tools %}\n{{ tool | tojson }}{% endfor %}"
    "\nAnswer with <tool_call>{name, arguments}</tool_call>.<|im_end|>\n"
    "{%- elif messages and messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n"
    "{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{%- elif m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}"
    "{%- for call in m.tool_calls or [] %}"
    "{{ '\n<tool_call>\n' }}"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}\n</tool_call>"
    "{%- endfor %}<|im_end|>\n"
    "{%- elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% if note %}{{ note }}\n{% endif %}{% endif %}"
)
"""As Qwen's: takes tools, calls, results, and a variable."""
QUIET = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Leaves out what it does not know."""
DEVELOPER = (
    "{% for m in messages %}{% if m.role == 'developer' %}<|im_start|>developer\n{{ m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Has the role."""


def with_template(source: str) -> Tokenizer:
    """A byte-level tokenizer whose chat template is `source`."""
    return tokenizer("bytes", source)
