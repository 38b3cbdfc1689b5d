"""From a body to its generations, with every limit of the server checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from ..config import CACHE_MODES
from ..request.field_names import FieldNames
from ..request.input import GenerateInput, Prompt
from ..request.sampling_params import STRUCTURES, SamplingParams
from ..request.snapshot import STREAM_MODES, StreamMode
from ..service.info import ServiceInfo
from ..service.service import MAX_PRIORITY
from .api_error import bad_request
from .cost import check_work
from .decoding import MASKS, NESTED, sampling_params
from .defaults import Defaults
from .schemas import LookupBody, Routing, ScoreBody
from .state import ServerState, is_admin
from .structure import take_structure
from .wording import shown

REQUEST_ID_HEADER = "x-request-id"
_RID = re.compile(r"[\x21-\x7e]{1,256}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Generations of one body: answers to prompt i are inputs[i * n : (i + 1) * n]."""

    rid: str
    inputs: tuple[GenerateInput, ...]
    n: int


def make_batch(
    state: ServerState, request: Request, body: Routing, prompts: Sequence[Prompt], values: Sequence[Mapping[str, Any]],
    names: Sequence[FieldNames], default_max_new_tokens: int | None = None,
) -> Batch:  # fmt: skip
    """The inputs for `prompts` with sampling fields `values` and names for errors (one each). Raises ApiError.

    `default_max_new_tokens`: the route's own.
    """
    config = state.config
    if len(prompts) > config.max_batch:
        message = f"{names[0].prompt_field} has {len(prompts)} prompts; this server takes at most {config.max_batch}"
        raise bad_request(names[0].prompt_field, message)
    counts = {_count(v.get("n", 1), config.max_n) for v in values}
    if len(counts) > 1:
        raise bad_request("n", "n differs between the prompts of one request; it must be the same")
    (n,) = counts
    if len(prompts) * n > config.max_batch:
        words = f"{len(prompts)} prompts with n = {n} are {len(prompts) * n} answers"
        raise bad_request("n", f"{words}; this server gives at most {config.max_batch} in one request")
    defaults = Defaults.of(config, state.service.info, len(prompts) * n).values
    if default_max_new_tokens is not None:
        defaults["max_new_tokens"] = default_max_new_tokens
    taken = [take_structure(v) for v in values]
    names = [replace(f, structure=f.structure or name) for f, (_, name) in zip(names, taken, strict=True)]
    names = [replace(f, length="gen_length", length_given=True) if v.get("gen_length") is not None else f
             for f, (v, _) in zip(names, taken, strict=True)]  # fmt: skip
    for v, _ in taken:
        _check_masks(v, state.service.info)
    params = [sampling_params(v, config, defaults, f) for (v, _), f in zip(taken, names, strict=True)]
    check_work(config, state.service.info, prompts, params, n, names[0].prompt_field, names[0].length)
    for prompt, name, chosen in zip(prompts, names, params, strict=True):
        _check_seeds(chosen, n)
        check_unicode(name.prompt, prompt)
        check_unicode(name.stop, chosen.stop)
        for structure in STRUCTURES:
            check_unicode(name.structure or structure, getattr(chosen, structure))
    check_unicode("cache_salt", body.cache_salt)
    check_unicode("extra_key", body.extra_key)
    rid, rids = _ids(state, request, body.rid, len(prompts))
    shared: dict[str, Any] = {
        **routing_of(body, request, state),
        "stream": bool(body.stream),
        "stream_mode": _stream_mode(body),
    }
    inputs = tuple(
        GenerateInput(
            rid=_member(rids[i], k, n), prompt=prompt, sampling=_seeded(params[i], k), names=names[i], **shared
        )
        for i, prompt in enumerate(prompts)
        for k in range(n)
    )
    if len({item.rid for item in inputs}) < len(inputs):
        raise bad_request("rid", "rid has the same id twice")
    return Batch(rid, inputs, n)


def names_of(
    prompt: str, prompts: Sequence[Any], single: bool, length: str, values: Sequence[Mapping[str, Any]],
    structure: str = "", stop: str = "stop",
) -> list[FieldNames]:  # fmt: skip
    """The client's names for the fields of each prompt. ApiError (400) for an empty list."""
    if not prompts:
        raise bad_request(prompt, f"{prompt} is an empty list; it must have at least one prompt")
    called = [prompt] if single else [f"{prompt}[{i}]" for i in range(len(prompts))]
    return [
        FieldNames(name, length, "max_new_tokens" in v, structure=structure, stop=stop)
        for name, v in zip(called, values, strict=True)
    ]


def merged(*sources: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields of several mappings that are not null. Raises ApiError (400) for a field with two values."""
    values: dict[str, Any] = {}
    for source in sources:
        for name, value in (source or {}).items():
            if value is None:
                continue
            if name in values and values[name] != value:
                message = f"{name} is given twice: {shown(values[name])} and {shown(value)}; send one of them"
                raise bad_request(name, message)
            values[name] = value
    return values


def knobs_of(values: Any) -> dict[str, Any]:
    """The diffusion fields in a mapping that has other fields too (chat_template_kwargs, custom_params)."""
    if not isinstance(values, Mapping):
        return {}
    return {name: values[name] for name in NESTED if values.get(name) is not None}


def adopt_routing(body: Routing, values: Any, at: str = "chat_template_kwargs.") -> None:
    """Take from a nested mapping, which stands at `at`, the fields that routers drop at the top of a body.

    ApiError if both have a value.
    """
    for name in ("cache_mode", "cache_salt", "extra_key"):
        inner = values.get(name) if isinstance(values, Mapping) else None
        if inner is None:
            continue
        if not isinstance(inner, str):
            raise bad_request(at + name, f"{at}{name} is {shown(inner)}; it must be a string")
        if getattr(body, name) not in (None, inner):
            raise bad_request(name, f"{name} is {shown(getattr(body, name))} and {shown(inner)}; send one of them")
        setattr(body, name, inner)


def check_unicode(field: str, value: Any) -> None:
    """Raise ApiError (400) for text, anywhere in `value`, that is not valid Unicode (half a surrogate pair)."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            message = f"{field} is {shown(value)}, which can't be tokenized: it is no valid Unicode ({error.reason})"
            raise bad_request(field, message) from None
    elif isinstance(value, Mapping):
        for key, part in value.items():
            check_unicode(f"{field}.{key}", part)
    elif isinstance(value, Sequence) and value and not isinstance(value[0], int):
        for index, part in enumerate(value):
            check_unicode(f"{field}[{index}]", part)


def _check_masks(values: Mapping[str, Any], info: ServiceInfo) -> None:
    for name in MASKS:
        value = values.get(name)
        if value is not None and (value != info.mask_token_id or isinstance(value, bool)):
            words = f"this model's mask is {info.mask_token_id}, and no other token can be"
            raise bad_request(name, f"{name} is {shown(value)}; {words}")


def _count(n: Any, limit: int) -> int:
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= limit:
        raise bad_request("n", f"n is {shown(n)}; it must be an integer from 1 to {limit}")
    return n


def _check_seeds(params: SamplingParams, n: int) -> None:
    if n > 1 and params.seed is not None and params.seed > 2**63 - 1 - n:
        raise bad_request("seed", f"seed is {params.seed}; with n = {n} it must be at most {2**63 - 1 - n}")


def _seeded(params: SamplingParams, k: int) -> SamplingParams:
    """The k-th answer draws with the seed's k-th successor; with one seed all n answers would be the same."""
    return params if not k or params.seed is None else replace(params, seed=params.seed + k)


def _ids(state: ServerState, request: Request, rid: str | list[str] | None, count: int) -> tuple[str, list[str]]:
    """The id of the HTTP request and those of its prompts."""
    header = request.headers.get(REQUEST_ID_HEADER)
    wished = header if header is not None and _RID.fullmatch(header) else None
    generations = state.generations
    if rid is None:
        group = generations.new_rid(wished)
        return group, [group] if count == 1 else [f"{group}-{i}" for i in range(count)]
    rids = [rid] if isinstance(rid, str) else rid
    for name in rids:
        if not _RID.fullmatch(name):
            raise bad_request("rid", f"rid is {shown(name)}; it must be 1 to 256 printable ASCII characters")
        if generations.is_used(name):
            raise bad_request("rid", f"rid {shown(name)} is in use")
    if isinstance(rid, str):
        return rid, [rid] if count == 1 else [f"{rid}-{i}" for i in range(count)]
    if len(rids) != count:
        raise bad_request("rid", f"rid has {len(rids)} ids for {count} prompts")
    return (rids[0] if count == 1 else generations.new_rid(wished)), rids


def single_rid(state: ServerState, request: Request, rid: str | None) -> str:
    """The id of an HTTP request with one prompt. Raises ApiError for one that is malformed or in use."""
    return _ids(state, request, rid, 1)[0]


def routing_of(body: Routing | ScoreBody, request: Request, state: ServerState) -> dict[str, Any]:
    """cache_mode, cache_salt, priority and timeout_s of a GenerateInput. Raises ApiError for a value out of range."""
    return {
        **cache_of(body),
        "priority": _priority(body.priority, request, state),
        "timeout_s": _timeout(body.timeout_s, state),
    }


def cache_of(body: Routing | ScoreBody | LookupBody) -> dict[str, Any]:
    """Cache mode and salt, for GenerateInput. Raises ApiError for an unknown mode."""
    return {
        "cache_mode": _cache_mode(body.cache_mode),
        "cache_salt": tenant_key(body.cache_salt or "", body.extra_key or ""),
    }


def tenant_key(cache_salt: str, extra_key: str) -> str:
    """One cache salt for a pair of keys; no two pairs have the same one. Without an extra_key it is the salt itself.

    The salt is escaped so that the first bare `|` ends it.
    """
    salt = cache_salt.replace("\\", r"\\").replace("|", r"\|")
    return f"{salt}|{extra_key}" if extra_key else salt


def _member(rid: str, k: int, n: int) -> str:
    return rid if n == 1 else f"{rid}.{k}"


def _stream_mode(body: Routing) -> StreamMode:
    mode = getattr(body, "stream_mode", None) or "text"
    if mode not in STREAM_MODES:
        raise bad_request("stream_mode", f"stream_mode is {shown(mode)}; it must be one of {', '.join(STREAM_MODES)}")
    if mode == "denoise" and not body.stream:
        raise bad_request("stream_mode", 'stream_mode is "denoise", which goes with stream true')
    return mode


def _cache_mode(mode: str | None) -> Any:
    if mode is not None and mode not in CACHE_MODES:
        raise bad_request("cache_mode", f"cache_mode is {shown(mode)}; it must be one of {', '.join(CACHE_MODES)}")
    return mode


def _priority(priority: int | None, request: Request, state: ServerState) -> int:
    limit = MAX_PRIORITY if is_admin(request) else state.config.max_priority
    if priority is not None and not -MAX_PRIORITY <= priority <= limit:
        words = "" if limit == MAX_PRIORITY else " (--max-priority; the admin key may ask for more)"
        raise bad_request("priority", f"priority is {priority}; it must be from -{MAX_PRIORITY} to {limit}{words}")
    return min(0, limit) if priority is None else priority


def _timeout(seconds: float | None, state: ServerState) -> float | None:
    limit = state.config.max_request_timeout_s
    if seconds is None:
        return state.config.request_timeout_s
    if not 0 < seconds <= limit:  # no NaN either
        raise bad_request("timeout_s", f"timeout_s is {shown(seconds)}; it must be above 0 and at most {limit}")
    return float(seconds)
