"""msgspec.Struct's place in an environment that has torch and no msgspec: an Engine and a worker run there."""

from __future__ import annotations

import copy
import inspect
from typing import Any, ClassVar


class Struct:
    """Fields from annotations, in order and with defaults, as in msgspec.Struct; a class's options are for encoding."""

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: bool) -> None:
        super().__init_subclass__()
        cls._fields = (*cls._fields, *inspect.get_annotations(cls))

    def __init__(self, *values: Any, **named: Any):
        if len(values) > len(self._fields):
            raise TypeError(f"{type(self).__name__} has {len(self._fields)} fields, {len(values)} were given")
        given = {**dict(zip(self._fields, values, strict=False)), **named}
        if unknown := given.keys() - set(self._fields):
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        for name in self._fields:
            if name not in given and not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs {name}")
            setattr(self, name, given[name] if name in given else copy.copy(getattr(type(self), name)))
