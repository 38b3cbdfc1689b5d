"""Bodies that clients send, with strict types. Unknown fields are kept; `fields.py` judges them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

_MAX_INT = 2**31 - 1
Id = Annotated[int, Field(ge=-1, le=_MAX_INT)]
_First = Field(fail_fast=True)
"""Of a list: one wrong item is enough, for millions may be."""
Ids = Annotated[list[Id], _First]
Strings = Annotated[list[str], _First]
Objects = Annotated[list[dict[str, Any]], _First]
ListOfIds = Annotated[list[Ids], _First]
Number = int | float


class Body(BaseModel):
    """Base of all bodies: converts no types, keeps unknown fields for the routes to check."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    def fields(self) -> dict[str, Any]:
        """Every field that is not null, unknown ones included."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        values.update(self.model_extra or {})
        return {name: value for name, value in values.items() if value is not None}


class Routing(Body):
    """Fields of every generating route besides its prompt."""

    rid: Annotated[str | Strings | None, Field(description="Id of the request, or one for each prompt.")] = None
    cache_mode: Annotated[
        str | None, Field(description="none, prefix, dual, lm or bicache; the server's default when absent.")
    ] = None
    cache_salt: Annotated[str | None, Field(description="Prefixes are shared among equal salts only.")] = None
    extra_key: Annotated[str | None, Field(description="As cache_salt; both together separate further.")] = None
    priority: Annotated[int | None, Field(description="Higher goes first.")] = None
    timeout_s: Annotated[Number | None, Field(description="Seconds after which the request ends with a 504.")] = None
    stream: Annotated[bool | None, Field(description="Server-sent events with committed text.")] = None
    temperature: Annotated[Number | None, Field(description="0 takes the most probable token.")] = None
    seed: Annotated[int | None, Field(description="Of the draws, with a temperature.")] = None
    ignore_eos: Annotated[bool | None, Field(description="Go on to the end of the canvas.")] = None
    block_length: Annotated[int | None, Field(description="Canvas positions decoded together.")] = None
    steps: Annotated[int | None, Field(description="Forward passes for the whole canvas.")] = None
    threshold: Annotated[Number | None, Field(description="Commit what is at least this sure.")] = None
    factor: Annotated[Number | None, Field(description="Fast-dLLM's factor.")] = None
    strategy: Annotated[str | None, Field(description="low_confidence, entropy, margin or random.")] = None
    split_special_tokens: Annotated[
        bool | None,
        Field(
            description="Of a text prompt: what spells a special token is ordinary text (true) or that token (false); "
            "the server's --split-special-tokens when absent. Contents of messages are always ordinary text."
        ),
    ] = None


class Asked(Routing):
    """Routing of routes with several answers to a prompt."""

    stream_mode: Annotated[
        str | None, Field(description="Of a stream: text, or denoise for snapshots of the whole canvas too.")
    ] = None
    n: Annotated[int | None, Field(description="Answers for each prompt.")] = None
    stop: Annotated[str | Strings | None, Field(description="Strings that end the text.")] = None


class GenerateBody(Asked):
    """Body of /generate."""

    text: Annotated[str | Strings | None, Field(description="Prompt or prompts, as they are.")] = None
    input_ids: Annotated[Ids | ListOfIds | None, Field(description="Prompt or prompts as token ids.")] = None
    canvas: Annotated[
        Ids | Annotated[list[Ids | None], _First] | None,
        Field(
            description="Canvas template, or one for each prompt: token ids that stay as they are, -1 for a mask. Its "
            "length takes the place of max_new_tokens; the reply has `holes`."
        ),
    ] = None
    shared_prefix: Annotated[
        int | None,
        Field(
            ge=0, le=_MAX_INT, description="Leading prompt tokens that a request with max_new_tokens 0 has computed."
        ),
    ] = None
    sampling_params: Annotated[
        dict[str, Any] | Objects | None,
        Field(description="max_new_tokens, temperature, stop, stop_token_ids, ignore_eos, n and the diffusion knobs."),
    ] = None
    return_logprob: Annotated[
        bool | None, Field(description="Give each token's log-probability in the forward that committed it.")
    ] = None
    top_logprobs_num: Annotated[
        int | None, Field(description="How many of the most probable tokens to list with each, 0 to 20.")
    ] = None
    logprob_start_len: Annotated[int | None, Field(description="-1: those of a prompt do not exist.")] = None
    return_text_in_logprobs: Annotated[bool | None, Field(description="With the tokens' texts.")] = None


class ScoreBody(Body):
    """Body of /score."""

    text: Annotated[str | None, Field(description="Prompt, as it is.")] = None
    input_ids: Annotated[Ids | None, Field(description="Prompt as token ids.")] = None
    choices: Annotated[Strings | ListOfIds, Field(description="Texts or token ids to score behind the prompt.")]
    method: Annotated[str, Field(description="pseudo or one_shot: see docs/frontend.md for the formulas.")] = "pseudo"
    cache_mode: Annotated[str | None, Field(description="As for /generate.")] = None
    cache_salt: Annotated[str | None, Field(description="As for /generate.")] = None
    extra_key: Annotated[str | None, Field(description="As for /generate.")] = None
    priority: Annotated[int | None, Field(description="As for /generate.")] = None
    timeout_s: Annotated[Number | None, Field(description="As for /generate; for all choices together.")] = None
    shared_prefix: Annotated[int, Field(ge=0, le=_MAX_INT, description="As for /generate.")] = 0
    rid: Annotated[str | None, Field(description="Id of the request.")] = None
    split_special_tokens: Annotated[bool | None, Field(description="Of text and choices: as for /generate.")] = None


class LookupBody(Body):
    """Body of /cache/match."""

    text: Annotated[str | None, Field(description="Prompt, as it is.")] = None
    input_ids: Annotated[Ids | None, Field(description="Prompt as token ids.")] = None
    max_new_tokens: Annotated[int | None, Field(description="Canvas length: the depth depends on it.")] = None
    cache_mode: Annotated[str | None, Field(description="As for /generate.")] = None
    cache_salt: Annotated[str | None, Field(description="As for /generate.")] = None
    extra_key: Annotated[str | None, Field(description="As for /generate.")] = None
    shared_prefix: Annotated[int, Field(ge=0, le=_MAX_INT, description="As for /generate.")] = 0
    split_special_tokens: Annotated[bool | None, Field(description="As for /generate.")] = None


class StreamOptions(Body):
    """Options of usage in a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class CompletionBody(Asked):
    """Body of /v1/completions."""

    model: Annotated[str | None, Field(description="Any name is taken; one model is served.")] = None
    prompt: Annotated[str | Strings | Ids | ListOfIds, Field(description="Text, token ids, or a list of either.")]
    max_tokens: Annotated[int | None, Field(description="Canvas length; 16 when absent.")] = None
    suffix: Annotated[str | None, Field(description="Text behind the answer, which fills the place before it.")] = None
    canvas: Annotated[
        Ids | Annotated[list[Ids | None], _First] | None,
        Field(description="As for /generate; choices have `holes`."),
    ] = None
    echo: Annotated[bool | None, Field(description="Put the prompt before the text.")] = None
    logprobs: Annotated[
        int | None,
        Field(description="Give log-probabilities, and list so many of the most probable tokens with each, 0 to 20."),
    ] = None
    stream_options: StreamOptions | None = None


class ChatMessage(Body):
    """One message of a chat."""

    role: str
    content: str | Objects | None = None
    name: str | None = None
    tool_calls: Objects | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Templating(Body):
    """What the chat template is told beside the messages."""

    tools: Annotated[Objects | None, Field(description="Functions that the model may call.")] = None
    chat_template: Annotated[str | None, Field(description="Jinja source in place of the model's own template.")] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None,
        Field(description="Variables of the chat template; fields of a diffusion model are taken from here too."),
    ] = None


class ChatRendering(Templating):
    """How the messages of a chat become a prompt."""

    add_generation_prompt: Annotated[
        bool | None, Field(description="End with the header of an answer; true when absent.")
    ] = None
    continue_final_message: Annotated[
        bool | None, Field(description="The answer continues the last message; false when absent.")
    ] = None


class Choosing(Templating):
    """How functions are chosen on OpenAI's routes."""

    tool_choice: Annotated[
        str | dict[str, Any] | None, Field(description="none, auto, required or a function; auto when absent.")
    ] = None
    parallel_tool_calls: Annotated[bool | None, Field(description="false: an answer ends with its first call.")] = None


class ChatBody(Asked, ChatRendering, Choosing):
    """Body of /v1/chat/completions."""

    model: Annotated[str | None, Field(description="Any name is taken; one model is served.")] = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int | None, Field(description="Canvas length.")] = None
    max_completion_tokens: Annotated[int | None, Field(description="Canvas length; goes before max_tokens.")] = None
    logprobs: Annotated[bool | None, Field(description="Give log-probabilities of the tokens.")] = None
    top_logprobs: Annotated[
        int | None, Field(description="How many of the most probable tokens to list with each, 0 to 20.")
    ] = None
    stream_options: StreamOptions | None = None


class ResponseBody(Routing, Choosing):
    """Body of /v1/responses."""

    model: Annotated[str | None, Field(description="Any name is taken; one model is served.")] = None
    input: Annotated[str | Objects, Field(min_length=1, description="Text, or messages, calls and their outputs.")]
    instructions: Annotated[str | None, Field(description="A system message before the input.")] = None
    max_output_tokens: Annotated[int | None, Field(description="Canvas length.")] = None
    text: Annotated[dict[str, Any] | None, Field(description="`format` of type text, json_object or json_schema.")] = (
        None
    )
    stop: Annotated[str | Strings | None, Field(description="Strings that end the text.")] = None
    store: Annotated[bool | None, Field(description="Only false: nothing is kept.")] = None
    metadata: Annotated[dict[str, Any] | None, Field(description="Comes back in the reply.")] = None
    user: Annotated[str | None, Field(description="Comes back in the reply.")] = None


class AnthropicMessage(Body):
    """One message of /v1/messages."""

    role: str
    content: str | Objects


class CountBody(Templating):
    """Body of /v1/messages/count_tokens."""

    model: Annotated[str | None, Field(description="Any name is taken; one model is served.")] = None
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, fail_fast=True)]
    system: Annotated[str | Objects | None, Field(description="A system message before the others.")] = None
    tool_choice: Annotated[dict[str, Any] | None, Field(description="Type auto, any, tool or none.")] = None


class MessagesBody(Routing, CountBody):
    """Body of /v1/messages."""

    max_tokens: Annotated[int, Field(description="Canvas length.")]
    stop_sequences: Annotated[Strings | None, Field(description="Strings that end the text.")] = None


class Part(Body):
    """A stretch of a text."""

    text: str
    split_special_tokens: bool = False


class TokenizeBody(ChatRendering):
    """Body of /tokenize: a prompt or prompts, chat messages, or the parts of one text."""

    prompt: str | Strings | None = None
    messages: Annotated[list[ChatMessage], _First] | None = None
    parts: Annotated[
        Annotated[list[Part], _First] | None,
        Field(description="Text in pieces that are tokenized as one; those with split_special_tokens are data."),
    ] = None
    add_special_tokens: bool = True
    split_special_tokens: Annotated[bool | None, Field(description="Of a prompt: as for /generate.")] = None


class DetokenizeBody(Body):
    """Body of /detokenize."""

    tokens: Ids | ListOfIds
    skip_special_tokens: bool = True


class ProfileBody(Body):
    """Body of /start_profile."""

    output_dir: Annotated[str | None, Field(description="Folder for the trace; --profile-dir when absent.")] = None
    num_steps: Annotated[int | None, Field(description="Scheduling steps after which it ends by itself.")] = None
    activities: Annotated[Strings | None, Field(description="CPU, GPU; both when absent.")] = None
    with_stack: Annotated[bool | None, Field(description="Record Python's call stacks.")] = None
    record_shapes: Annotated[bool | None, Field(description="Record the shapes of operators' inputs.")] = None
    start_step: Annotated[int | None, Field(description="Not supported: null or 0.")] = None
    profile_by_stage: Annotated[bool | None, Field(description="Not supported: null or false.")] = None


class AbortBody(Body):
    """Body of /abort_request."""

    rid: str | None = None
    abort_all: bool | None = None
