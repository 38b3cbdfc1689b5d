"""Every field that a client may send, and its treatment: one table for all routes.

`fields.py` enforces it, docs/fields.md shows it, tests/runtime/http/test_fields.py tries each row at each place. The
names are those of OpenAI's completion and chat schemas, SGLang's native and OpenAI schemas, vLLM's extra parameters,
the routers in front of them, and the decoding options of published diffusion models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GENERATE, COMPLETIONS, CHAT, SCORE = "/generate", "/v1/completions", "/v1/chat/completions", "/score"
LOOKUP = "/cache/match"
RESPONSES, MESSAGES, COUNT_TOKENS = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
TOKENIZE, DETOKENIZE, ABORT, PROFILE = "/tokenize", "/detokenize", "/abort_request", "/start_profile"
SAMPLING, CUSTOM, KWARGS = "sampling_params", "custom_params", "chat_template_kwargs"
MESSAGE, STREAM_OPTIONS = "messages[]", "stream_options"

ROUTES = (
    GENERATE, SCORE, LOOKUP, COMPLETIONS, CHAT, RESPONSES, MESSAGES, COUNT_TOKENS, TOKENIZE, DETOKENIZE, ABORT, PROFILE,
)  # fmt: skip
INSIDE: Mapping[str, str] = {
    SAMPLING: GENERATE, CUSTOM: GENERATE, KWARGS: CHAT, MESSAGE: CHAT, STREAM_OPTIONS: CHAT,
}  # fmt: skip
"""Objects inside bodies, and a route that has each."""
PLACES = (*ROUTES, *INSIDE)

_OPENAI = (COMPLETIONS, CHAT)
_SEVERAL = (GENERATE, *_OPENAI)
GENERATING = (*_SEVERAL, RESPONSES, MESSAGES)
"""Routes that generate text."""
_SAMPLED = (*GENERATING, SAMPLING)
_RENDERED = (CHAT, TOKENIZE)
_TEMPLATED = (*_RENDERED, RESPONSES, MESSAGES, COUNT_TOKENS)
_DIFFUSION = (*_SAMPLED, CUSTOM, KWARGS)
_COMPUTING = (*GENERATING, SCORE)
_TENANT = (*_DIFFUSION, SCORE, LOOKUP)

_NO_SUCH_THING = "diffusion decoding here has no such thing"
_LOGPROBS = "a diffusion model has no log probabilities of a prompt; /score gives those of given answers"
_NO_MEDIA = "the models here take text only"
_NO_GRAMMAR = "text can be constrained by json_schema, regex or choice alone"
_NO_SPLIT = "prefill and decoding are not split here"


@dataclass(frozen=True, slots=True)
class Field:
    """One row.

    Attributes:
        name: as clients spell it.
        served: places that honour it; its value is checked there.
        neutral: values that other places accept, because they ask for what happens anyway. Null and empty values always
            are accepted.
        any_value: it can't change an answer, so other places accept any value.
        why: reason of a refusal elsewhere.
        use: names to send instead; an error advises the first that its place honours.
    """

    name: str
    served: tuple[str, ...] = ()
    neutral: tuple[Any, ...] = ()
    any_value: bool = False
    why: str = _NO_SUCH_THING
    use: tuple[str, ...] = ()


def _ignored(*names: str) -> Iterable[Field]:
    return (Field(name, any_value=True) for name in names)


def _refused(why: str, *names: str) -> Iterable[Field]:
    return (Field(name, why=why) for name in names)


_ROWS = (
    # Prompts
    Field("text", (GENERATE, SCORE, LOOKUP, RESPONSES), use=("prompt", "messages")),
    Field("input_ids", (GENERATE, SCORE, LOOKUP), use=("prompt", "messages")),
    Field("prompt", (COMPLETIONS, TOKENIZE), use=("text", "messages")),
    Field("messages", (CHAT, MESSAGES, COUNT_TOKENS, TOKENIZE), use=("text", "prompt", "input")),
    Field("input", (RESPONSES,), use=("text", "prompt", "messages")),
    Field("instructions", (RESPONSES,), use=("messages",)),
    Field("system", (MESSAGES, COUNT_TOKENS), use=("instructions", "messages")),
    Field("tokens", (DETOKENIZE,), use=("input_ids", "prompt")),
    Field("canvas", (GENERATE, COMPLETIONS)),
    Field("shared_prefix", (GENERATE, SCORE, LOOKUP)),
    Field("choices", (SCORE,)),
    Field("method", (SCORE,)),
    Field("sampling_params", (GENERATE,)),
    Field("custom_params", (SAMPLING,), use=("chat_template_kwargs",)),
    Field("chat_template", _TEMPLATED, why="there are no messages"),
    Field("chat_template_kwargs", _TEMPLATED, why="there are no messages"),
    Field("add_generation_prompt", _RENDERED, neutral=(True,)),
    Field("continue_final_message", _RENDERED, neutral=(False,)),
    Field("parts", (TOKENIZE,)),
    Field("split_special_tokens", (*_SAMPLED, SCORE, LOOKUP, TOKENIZE), neutral=(False,)),
    Field("add_special_tokens", (TOKENIZE,), neutral=(True,)),
    *(Field(name, (MESSAGE,)) for name in ("role", "content", "tool_calls", "tool_call_id")),
    *(Field(name, (MESSAGE,), any_value=True) for name in ("name", "reasoning_content")),
    Field("suffix", (COMPLETIONS,), why="a chat has no text behind its answer"),
    Field("echo", (COMPLETIONS,), neutral=(False,)),
    # The canvas, and how it is filled
    Field("max_new_tokens", (GENERATE, LOOKUP, SAMPLING), use=("max_tokens",)),
    Field("max_tokens", (*_OPENAI, MESSAGES), use=("max_new_tokens", "max_output_tokens")),
    Field("max_output_tokens", (RESPONSES,), use=("max_new_tokens", "max_tokens")),
    Field("max_completion_tokens", (CHAT,), use=("max_new_tokens", "max_tokens")),
    Field("block_length", _DIFFUSION),
    Field("canvas_window", _DIFFUSION),
    Field("refresh_schedule", _DIFFUSION),
    Field("full_refresh_every", _DIFFUSION),
    Field("refresh_entropy", _DIFFUSION),
    Field("steps", _DIFFUSION),
    Field("threshold", _DIFFUSION),
    Field("factor", _DIFFUSION),
    Field("entropy_bound", _DIFFUSION),
    Field("threshold_decay", _DIFFUSION, neutral=(0,)),
    Field("kl_threshold", _DIFFUSION),
    Field("kl_history", _DIFFUSION),
    Field("strategy", _DIFFUSION),
    Field("temperature", _SAMPLED, neutral=(1,)),
    Field("top_p", _SAMPLED, neutral=(1,)),
    Field("top_k", _SAMPLED, neutral=(-1, 0, 1 << 30)),
    Field("min_p", _SAMPLED, neutral=(0,)),
    Field("seed", _SAMPLED, any_value=True),
    Field("sampling_seed", _SAMPLED, any_value=True),
    Field("stop", (*_SEVERAL, SAMPLING, RESPONSES), use=("stop_sequences",)),
    Field("stop_sequences", (MESSAGES,), use=("stop",)),
    Field("stop_token_ids", _SAMPLED),
    Field("ignore_eos", _SAMPLED, neutral=(False,)),
    Field("n", (*_SEVERAL, SAMPLING), neutral=(1,)),
    # The request
    Field("rid", (*_COMPUTING, ABORT), any_value=True),
    Field("stream", GENERATING, neutral=(False,)),
    Field("stream_mode", _SEVERAL, neutral=("text",)),
    Field("stream_options", _OPENAI, neutral=({"include_obfuscation": True}, {"include_obfuscation": False})),
    Field("include_usage", (STREAM_OPTIONS,)),
    Field("continuous_usage_stats", (STREAM_OPTIONS,)),
    Field("cache_mode", _TENANT),
    Field("cache_salt", _TENANT),
    Field("extra_key", _TENANT),
    Field("priority", _COMPUTING),
    Field("timeout_s", _COMPUTING),
    Field("skip_special_tokens", (DETOKENIZE,), neutral=(True,)),
    Field("abort_all", (ABORT,)),
    *(
        Field(name, (PROFILE,))
        for name in ("output_dir", "num_steps", "activities", "with_stack", "record_shapes", "start_step",
                     "profile_by_stage")
    ),
    # What can't change an answer
    *_ignored(
        "model", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "prediction", "moderation", "log_metrics", "no_logs",
        "label", "custom_labels", "conversation_id", "request_id", "routing_key", "data_parallel_rank",
        "routed_dp_rank", "received_time", "external_trace_header", "stream_interval",
        "return_cached_tokens_details", "return_meta_info", "spaces_between_special_tokens",
        "separate_reasoning", "stream_reasoning", "include_reasoning", "include_obfuscation",
        "abort_message", "finished_reason", "max_tool_calls", "cache_control", "diagnostics", "inference_geo", "speed",
        "user_profile_id", "workspace_id",
    ),
    # Reasoning and text length: the models here do none and have no dial
    *_ignored("reasoning_effort", "reasoning"),
    Field("verbosity", neutral=("medium",)),
    Field("modalities", neutral=(["text"],), why=_NO_MEDIA),
    # Distributions
    Field("frequency_penalty", _SAMPLED, neutral=(0,)),
    Field("presence_penalty", _SAMPLED, neutral=(0,)),
    Field("repetition_penalty", _SAMPLED, neutral=(1,)),
    Field("repeat_penalty", neutral=(1,), use=("repetition_penalty",)),
    Field("length_penalty", neutral=(1,)),
    Field("typical_p", neutral=(1,)),
    Field("top_a", neutral=(0,)),
    Field("logit_bias", _SAMPLED),
    Field("min_new_tokens", _SAMPLED, neutral=(0,)),
    Field("min_tokens", _SAMPLED, neutral=(0,)),
    Field("min_length", neutral=(0,), use=("min_tokens",)),
    Field("best_of", neutral=(1,)),
    Field("num_beams", neutral=(1,)),
    Field("use_beam_search", neutral=(False,)),
    Field("do_sample", use=("temperature",)),
    Field("no_repeat_ngram_size", neutral=(0,)),
    *_refused(_NO_SUCH_THING, "bad_words", "allowed_token_ids", "logits_processors", "custom_logit_processor"),
    # Text that comes back
    Field("no_stop_trim", neutral=(False,)),
    Field("include_stop_str_in_output", neutral=(False,)),
    Field("stop_regex"),
    Field("return_logprob", (GENERATE,), neutral=(False,), use=("logprobs",)),
    Field("logprobs", _OPENAI, neutral=(False,), use=("return_logprob",)),
    Field("top_logprobs", (CHAT,), neutral=(0,), use=("logprobs", "top_logprobs_num")),
    Field("top_logprobs_num", (GENERATE,), neutral=(0,), use=("logprobs",)),
    Field("logprob_start_len", (GENERATE,), any_value=True),
    Field("return_text_in_logprobs", (GENERATE,), any_value=True),
    Field("prompt_logprobs", why=_LOGPROBS),
    Field("token_ids_logprob", why=_LOGPROBS),
    *(
        Field(name, neutral=(False,), why="the reply has no such part")
        for name in ("return_hidden_states", "return_entropy", "return_bytes", "return_routed_experts",
                     "return_token_ids", "return_tokens_as_token_ids", "return_prompt_token_ids", "return_token_strs")
    ),
    # Constrained decoding and tools
    Field("response_format", _OPENAI, neutral=({"type": "text"},), use=("json_schema",)),
    Field("json_schema", _SAMPLED),
    Field("regex", _SAMPLED),
    Field("choice", _SAMPLED),
    Field("structured_outputs", _OPENAI, use=("json_schema",)),
    Field("guided_json", _OPENAI, use=("json_schema",)),
    Field("guided_regex", _OPENAI, use=("regex",)),
    Field("guided_choice", _OPENAI, use=("choice",)),
    *_refused(
        _NO_GRAMMAR, "ebnf", "structural_tag", "guided_grammar", "guided_decoding_backend",
        "guided_whitespace_pattern",
    ),
    Field("tools", _TEMPLATED),
    Field("tool_choice", (CHAT, RESPONSES, MESSAGES, COUNT_TOKENS), neutral=("none", "auto")),
    Field("parallel_tool_calls", (CHAT, RESPONSES), any_value=True),
    Field("store", (RESPONSES,), any_value=True),
    *(Field(name, (RESPONSES,), any_value=True) for name in ("user", "metadata")),
    *_refused("nothing is kept here", "previous_response_id", "conversation", "background_options"),
    Field("include", neutral=(["reasoning.encrypted_content"],), why="the reply has no such part"),
    Field("truncation", neutral=("disabled",), why="a prompt is never cut: shorten it"),
    Field("thinking", neutral=({"type": "disabled"},), why="the models here do not reason"),
    *_refused(_NO_SUCH_THING, "context_management", "container", "mcp_servers", "access_programs"),
    Field("output_config", why=_NO_GRAMMAR),
    Field("functions", use=("tools",)),
    Field("function_call", neutral=("none", "auto"), use=("tool_choice", "tool_calls")),
    Field("web_search_options", why="the server calls no tools itself"),
    # Prompts of other kinds, and other templates
    *_refused(
        _NO_MEDIA, "image", "image_data", "video_data", "audio_data", "modalities_data", "input_embeds",
        "prompt_embeds", "audio", "mm_processor_kwargs",
    ),
    Field("documents", why="put them into the messages"),
    Field("truncate_prompt_tokens", why="a prompt is never cut: shorten it"),
    Field("refusal"),
    Field("annotations", any_value=True),
    # How other servers are run
    *_refused("there are no sessions", "session_params", "session_id"),
    *_refused("there are no adapters", "lora_path", "lora_id", "lora_request"),
    *_refused(_NO_SPLIT, "bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key",
              "kv_transfer_params"),
    Field("background", neutral=(False,)),
    Field("vllm_xargs"),
    # Decoding options of published diffusion models, and other servers' names
    Field("alg", _DIFFUSION),
    Field("remasking", _DIFFUSION),
    Field("conf_alg", _DIFFUSION),
    Field("alg_temp", _DIFFUSION, neutral=(0,)),
    Field("eps", _DIFFUSION),
    Field("schedule", _DIFFUSION),
    Field("ranking", _DIFFUSION),
    Field("cfg_scale", _DIFFUSION, neutral=(0,)),
    Field("mask_id", _DIFFUSION),
    Field("mask_token_id", _DIFFUSION),
    Field("logits_eos_inf", _DIFFUSION, neutral=(False,)),
    Field("confidence_eos_eot_inf", _DIFFUSION, neutral=(False,)),
    Field("eos_penalty", _DIFFUSION, neutral=(0,)),
    Field("use_cache", use=("cache_mode",)),
    Field("dual_cache", use=("cache_mode",)),
    Field("output_history", neutral=(False,)),
    Field("gen_length", _DIFFUSION),
    Field("max_length", use=("max_new_tokens", "max_tokens")),
    Field("num_predict", use=("max_new_tokens", "max_tokens")),
    Field("block_size", use=("block_length",)),
    Field("diffusion_steps", use=("steps",)),
    Field("denoising_steps", use=("steps",)),
    Field("confidence_threshold", use=("threshold",)),
    Field("conf_threshold", use=("threshold",)),
    Field("kl_history_length", use=("kl_history",)),
    Field("random_seed", use=("seed",)),
    Field("num_return_sequences", neutral=(1,), use=("n",)),
    Field("stop_words", use=("stop",)),
    Field("eos_token_id", use=("stop_token_ids",)),
    Field("timeout", use=("timeout_s",)),
    Field("salt", use=("cache_salt",)),
)  # fmt: skip

FIELDS: Mapping[str, Field] = {field.name: field for field in _ROWS}
"""The table, by name."""
