"""Typed look-ups in a parsed `config.json`, with errors that name the key."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from ..errors import ModelLoadError, shorten

_REQUIRED: Any = object()


class Fields:
    """A configuration's keys. A key that is absent or null takes the default; without one it is an error.

    `prefix` stands before keys in errors: where an object within `config.json` is read.

    Every method raises ModelLoadError (field, value and what is supported) for what it can't accept.
    """

    def __init__(self, values: dict[str, Any], prefix: str = ""):
        self._values = values
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value, `default` when absent or null."""
        value = self._values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: Any = _REQUIRED) -> int:
        """A whole number (booleans are not numbers here)."""
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(key, value, "a whole number")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A finite number, as float."""
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            self.refuse(key, value, "a finite number")
        return float(value)

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        value = self._present(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def token_id(self, key: str, default: Any = _REQUIRED) -> int:
        """A token id; of a list of ids (some EOS fields) the first."""
        value = self._present(key, default)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(key, value, "a token id")
        return value

    def expect(self, key: str, *supported: object, default: object) -> None:
        """The value (or `default` when the key is absent) must be one of `supported`."""
        value = self._values.get(key, default)
        if not any(value is option or (type(value) is type(option) and value == option) for option in supported):
            names = " or ".join(repr(option) for option in supported if option is not None) or "null"
            self.refuse(key, value, names)

    def expect_divisor(self, key: str, value: int, of: str, whole: int) -> None:
        """The value of `key` must divide that of the key `of`, which is `whole`."""
        if whole % max(value, 1):
            self.refuse(key, value, f"a divisor of {of} = {whole}")

    def expect_unquantized(self) -> None:
        """Raise for quantised weights, which the decoder can't run."""
        for key in ("quantization_config", "quantization"):
            if self.get(key) is not None:
                self.refuse(key, self.get(key), "null: weights in fp32, fp16 or bf16")

    def _present(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ModelLoadError(
                f"config.json has no {self._prefix + key!r}",
                field=self._prefix + key,
                value=None,
                limit="a value: the key is required",
            )
        return default

    def refuse(self, key: str, value: object, supported: str) -> NoReturn:
        """Raise ModelLoadError for a key's value; `supported` says what it may be."""
        key = self._prefix + key
        raise ModelLoadError(
            f"{key} = {shorten(value)} in config.json is not supported: expected {supported}",
            field=key,
            value=value,
            limit=supported,
        )
