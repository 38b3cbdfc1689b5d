"""From the sampling fields that clients of autoregressive servers send to SamplingParams, and what is refused.

A field whose value asks for nothing (null, empty, the neutral value) is accepted whatever it is. One that would change
the result and that a diffusion decoder here can't honour is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import shorten
from ..request.sampling_params import SamplingParams
from .api_error import ApiError, bad_request
from .config import ServerConfig

KNOBS = ("steps", "block_length", "threshold", "factor", "strategy")
"""Sampling parameters that only a diffusion model has."""
_KNOWN = ("max_new_tokens", "temperature", "stop", "stop_token_ids", "ignore_eos", "split_special_tokens", *KNOBS)
_NUMBERS = ("max_new_tokens", "temperature", "steps", "block_length", "threshold", "factor", "seed", "sampling_seed")
_LARGEST = 1 << 63
_GREEDY_BELOW = 1e-5
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_new_tokens": (0,),
    "min_tokens": (0,),
    "best_of": (1,),
    "skip_special_tokens": (True,),
    "no_stop_trim": (False,),
    "include_stop_str_in_output": (False,),
    "return_logprob": (False,),
    "return_hidden_states": (False,),
    "logprobs": (False,),
    "return_entropy": (False,),
    "return_bytes": (False,),
    "return_routed_experts": (False,),
    "separate_reasoning": (True, False),
    "top_logprobs": (0,),
    "top_logprobs_num": (0,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "background": (False,),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
}
_UNSUPPORTED = (
    "stop_regex", "regex", "json_schema", "ebnf", "structural_tag", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "logit_bias", "bad_words", "suffix", "tools", "functions", "function_call", "lora_path",
    "session_params", "image_data", "video_data", "audio_data", "modalities_data", "input_embeds",
    "custom_logit_processor", "token_ids_logprob", "prompt_logprobs", "chat_template", "documents",
)  # fmt: skip
_WHY = {
    "return_logprob": "a diffusion model fills its canvas in any order and has no log probabilities of the kind that "
    "an autoregressive model gives",
    "suffix": "infilling is not part of this version",
}
_WHY["logprobs"] = _WHY["token_ids_logprob"] = _WHY["prompt_logprobs"] = _WHY["return_logprob"]


def refuse_unsupported(values: Mapping[str, Any]) -> None:
    """Raise ApiError (400) for the first field that asks for something that can't be had."""
    for name, value in values.items():
        if value is None or (isinstance(value, list | dict | str | tuple) and not value):
            continue
        neutral = _NEUTRAL.get(name)
        if name in _UNSUPPORTED or (neutral is not None and not any(_same(value, option) for option in neutral)):
            why = _WHY.get(name, "diffusion decoding here has no such thing")
            allowed = "null" if neutral is None else " or ".join(repr(option) for option in neutral)
            message = f"{name} is {shorten(value)}, which is not supported: {why}; leave it out or send {allowed}"
            raise ApiError(400, message, param=name, code="unsupported_parameter")
    fmt = values.get("response_format")
    if fmt is not None and not (isinstance(fmt, Mapping) and fmt.get("type") == "text"):
        message = f'response_format is {shorten(fmt)}; only {{"type": "text"}} is supported'
        raise ApiError(400, message, param="response_format", code="unsupported_parameter")


def sampling_params(values: Mapping[str, Any], config: ServerConfig, default_max_new_tokens: int) -> SamplingParams:
    """Sampling parameters from a request's fields over the server's defaults; unknown fields are left alone.

    `temperature` below 1e-5 is greedy; `sampling_seed` is another name of `seed`. top_p, top_k and min_p change nothing
    for greedy decoding and are accepted there; with a temperature only their neutral values are.
    Raises ApiError or InvalidRequestError.
    """
    values = {name: value for name, value in values.items() if value is not None}
    refuse_unsupported(values)
    for name in _NUMBERS:
        value = values.get(name)
        if isinstance(value, int) and abs(value) > _LARGEST:  # may be too large for a float
            raise bad_request(name, f"{name} is {shorten(value)}; it must be at most {_LARGEST}")
    chosen = {name: value for name, value in config.decoding_defaults().items() if value is not None}
    if any(name in values for name in ("steps", "threshold", "factor")):
        for name in ("steps", "threshold", "factor"):
            chosen.pop(name, None)
    chosen["max_new_tokens"] = default_max_new_tokens
    chosen.update((name, values[name]) for name in _KNOWN if name in values)
    for name in ("sampling_seed", "seed"):
        if name in values:
            chosen["seed"] = values[name]
    temperature = chosen["temperature"]
    if isinstance(temperature, int | float) and 0 <= temperature < _GREEDY_BELOW:
        chosen["temperature"] = temperature = 0.0
    _check_truncation(values, greedy=temperature == 0)
    _check_length(chosen["max_new_tokens"], config)
    return SamplingParams(**chosen)


def _check_truncation(values: Mapping[str, Any], greedy: bool) -> None:
    limits = {"top_p": (0.0, 1.0, (1,)), "min_p": (0.0, 1.0, (0,)), "top_k": (-1, 1 << 62, (-1, 0, 1 << 30))}
    for name, (low, high, neutral) in limits.items():
        if name not in values:
            continue
        value = values[name]
        whole = name == "top_k"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or (whole and value != int(value)):
            kind = "an integer" if whole else "a number"
            limit = f"at least {low}" if whole else f"from {low} to {high}"
            raise bad_request(name, f"{name} is {shorten(value)}; it must be {kind} {limit}")
        if not greedy and value not in neutral:
            message = (
                f"{name} is {value!r}, which is not supported with a temperature above 0: tokens are drawn from the "
                f"whole distribution; leave it out, send {neutral[0]}, or decode greedily with temperature 0"
            )
            raise ApiError(400, message, param=name, code="unsupported_parameter")


def _check_length(value: Any, config: ServerConfig) -> None:
    limit = config.max_new_tokens_limit
    if limit is not None and isinstance(value, int) and value > limit:
        raise bad_request("max_new_tokens", f"max_new_tokens is {value}; this server allows at most {limit}")


def _same(value: Any, option: Any) -> bool:
    if isinstance(value, bool) or isinstance(option, bool):
        return value is option
    return value == option
