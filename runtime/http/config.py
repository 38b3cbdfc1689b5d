"""Options of the HTTP server; a default stands here and nowhere else."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from ..checks import OPTION
from ..errors import ConfigError, InvalidRequestError
from ..request.sampling_params import SamplingParams
from ..service.service import MAX_PRIORITY

LOG_LEVELS = ("debug", "info", "warning", "error")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,*]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Options of the HTTP server. Raises ConfigError, naming the field, for values out of range.

    Attributes:
        host: address to listen on.
        port: TCP port to listen on; 0 takes a free one, which the log names.
        api_key: key that clients must send as `Authorization: Bearer KEY`. None: anybody may use the server.
        admin_api_key: key for flush, abort, the cache's snapshot and profiling. None: api_key is enough for them.
        allowed_hosts: names that a request's Host header may have, separated by commas (`*.example.com`: any below it;
            `*`: any). None: on a loopback address localhost, 127.0.0.1, [::1] and `host`, on other addresses any.
        allowed_origins: other sites whose pages may call this server, as `https://example.com`, separated by commas
            (`*`: any). None: no page of another site may.
        served_model_name: name of the model in the OpenAI routes. None: the model path.
        max_body_bytes: largest request body.
        max_held_bytes: most bytes of request bodies over 64 KiB that are held at a time, and most bytes of replies that
            wait for clients to read them; past it new bodies get a 503, and the clients that have read nothing for
            longest are dropped. None: 32 times max_body_bytes.
        body_timeout_s: seconds that a client may take to send it.
        max_n: most answers per prompt (n).
        max_batch: most prompts, most answers (prompts times n) and most choices (of /score, where 256 is the most at
            all) in one request.
        max_request_tokens: most token positions that one request may have in all: prompt and canvas of each answer, or
            of each forward pass of /score.
        max_request_forwards: most forward passes that the answers of one request may take in all: each one's steps, or
            its canvas length.
        max_score_forwards: most forward passes that one /score may take: with method `pseudo` one for each token of
            each choice.
        max_new_tokens_limit: largest max_new_tokens. None: what the model's length allows.
        default_max_new_tokens: canvas length of requests that give none on /generate and the chat route
            (/v1/completions takes 16, as OpenAI does); less where no more fits, and never over max_new_tokens_limit.
            None: what the model's generation_config.json says, else 1024, or with --canvas-window as long as the model
            allows.
        default_steps: forward passes for the canvas of requests that give neither steps, threshold nor factor.
        default_threshold: confidence threshold of such requests. None for all three: what generation_config.json says,
            else a threshold of 0.9.
        default_factor: factor of such requests.
        default_strategy: what confidence is, for requests that give no strategy. None: what generation_config.json
            says, else low_confidence.
        default_temperature: temperature of requests that give none; 0 takes the most probable token. None: what
            generation_config.json says, else 0.
        max_priority: largest `priority` that a request may ask for. Only the admin key may ask for more.
        request_timeout_s: seconds after which a request that gives no timeout_s is ended. None: never.
        max_request_timeout_s: largest timeout_s that a request may ask for.
        keep_alive_s: seconds that an idle connection is kept.
        max_connections: most open connections; past it the one that was silent longest is closed, and when all are
            busy only health and metrics are answered. None: what the limit of open files allows, at most 4096.
        max_header_bytes: largest request line and headers together.
        max_headers: most headers of a request.
        header_timeout_s: seconds that a client may take to send the headers, from the connection or the first byte on.
        send_timeout_s: seconds after which a client that reads nothing of a reply is dropped.
        drain_timeout_s: seconds that running requests get after SIGTERM.
        health_timeout_s: seconds that /health_generate waits for a sign of life.
        health_interval_s: seconds for which a result of /health_generate is given to further callers.
        skip_warmup: be ready without a warm-up request.
        enable_cache_report: say in the usage of the OpenAI routes how many prompt tokens came from the cache.
        in_process: run scheduler and worker in the HTTP server's own process instead of in processes of their own.
        log_level: `debug`, `info`, `warning` or `error`.
        log_json: one JSON object a line instead of text.
        log_requests: a line for every generation request with its counts (never its text).
        profile_dir: folder for the traces of /start_profile, for requests that name none (output_dir). None: they must.
        disable_docs: no OpenAPI schema and no /docs page.
        playground: a page at `/` for a browser: chat, the cache, the load.
    """

    host: str = "127.0.0.1"
    port: int = 30000
    api_key: str | None = None
    admin_api_key: str | None = None
    allowed_hosts: str | None = None
    allowed_origins: str | None = None
    served_model_name: str | None = None
    max_body_bytes: int = 8 << 20
    max_held_bytes: int | None = None
    body_timeout_s: float = 60.0
    max_n: int = 32
    max_batch: int = 1024
    max_request_tokens: int = 1 << 22
    max_request_forwards: int = 1 << 20
    max_score_forwards: int = 1 << 12
    max_new_tokens_limit: int | None = None
    default_max_new_tokens: int | None = None
    default_steps: int | None = None
    default_threshold: float | None = None
    default_factor: float | None = None
    default_strategy: str | None = None
    default_temperature: float | None = None
    max_priority: int = 0
    request_timeout_s: float | None = None
    max_request_timeout_s: float = 3600.0
    keep_alive_s: int = 75
    max_connections: int | None = None
    max_header_bytes: int = 65536
    max_headers: int = 100
    header_timeout_s: float = 20.0
    send_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0
    health_timeout_s: float = 20.0
    health_interval_s: float = 1.0
    skip_warmup: bool = False
    enable_cache_report: bool = True
    in_process: bool = False
    log_level: str = "info"
    log_json: bool = False
    log_requests: bool = False
    profile_dir: str | None = None
    disable_docs: bool = False
    playground: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host:
            OPTION.refuse("host", self.host, "a host name or address")
        OPTION.integer("port", self.port, 0, 65535)
        for name in ("served_model_name", "profile_dir", "allowed_hosts", "allowed_origins"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                OPTION.refuse(name, value, "a string that is not empty")
        for name in ("api_key", "admin_api_key"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _key(name, getattr(self, name)))
        for host in names(self.allowed_hosts):
            if "/" in host or ("*" in host.removeprefix("*.") and host != "*"):
                OPTION.refuse("allowed_hosts", host, "host names without scheme or path, *.NAME, or *")
        for origin in names(self.allowed_origins):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                OPTION.refuse("allowed_origins", origin, "SCHEME://HOST or SCHEME://HOST:PORT without a path, or *")
        limits = ("max_batch", "max_request_tokens", "max_request_forwards", "max_score_forwards")
        for name in ("max_body_bytes", "max_headers", "max_n", *limits, "keep_alive_s"):
            OPTION.integer(name, getattr(self, name), 1)
        for name in ("max_new_tokens_limit", "max_connections", "default_max_new_tokens"):
            if getattr(self, name) is not None:
                OPTION.integer(name, getattr(self, name), 1)
        OPTION.integer("max_header_bytes", self.max_header_bytes, 1024)
        if self.max_held_bytes is not None:
            OPTION.integer("max_held_bytes", self.max_held_bytes, 1)
            if self.max_held_bytes < self.max_body_bytes:
                OPTION.refuse("max_held_bytes", self.max_held_bytes, f"at least max_body_bytes, {self.max_body_bytes}")
        for name in (
            "body_timeout_s",
            "header_timeout_s",
            "send_timeout_s",
            "max_request_timeout_s",
            "health_timeout_s",
        ):
            OPTION.number(name, getattr(self, name), 0, above=True, of="seconds")
        if self.request_timeout_s is not None:
            OPTION.number("request_timeout_s", self.request_timeout_s, 0, above=True, of="seconds")
        for name in ("drain_timeout_s", "health_interval_s"):
            OPTION.number(name, getattr(self, name), 0, of="seconds")
        OPTION.integer("max_priority", self.max_priority, -MAX_PRIORITY, MAX_PRIORITY)
        OPTION.one_of("log_level", self.log_level, LOG_LEVELS)
        try:
            SamplingParams(**self.decoding_defaults())
        except InvalidRequestError as error:
            name = f"default_{error.field}"
            raise ConfigError(f"default_{error.message}", field=name, value=error.value, limit=error.limit) from error

    @property
    def held_bytes(self) -> int:
        """`max_held_bytes` with its default."""
        return self.max_held_bytes or 32 * self.max_body_bytes

    def check_for(self, max_tokens: int) -> None:
        """Raise ConfigError for a default that no request could have: it takes at most `max_tokens` tokens in all."""
        if self.default_max_new_tokens is not None and self.default_max_new_tokens >= max_tokens:
            limit = f"at most {max_tokens - 1}: a request may have {max_tokens} tokens here, prompt and canvas"
            OPTION.refuse("default_max_new_tokens", self.default_max_new_tokens, limit)

    def decoding_defaults(self) -> dict[str, Any]:
        """Sampling parameters that flags set for requests that say nothing about them."""
        names = ("max_new_tokens", "steps", "threshold", "factor", "strategy", "temperature")
        values = {name: getattr(self, f"default_{name}") for name in names}
        return {name: value for name, value in values.items() if value is not None}


def keys_from_environment() -> dict[str, str]:
    """Keys from the environment, which show in no list of processes. Raises ConfigError for an empty one."""
    names = {"api_key": "SHOAL_API_KEY", "admin_api_key": "SHOAL_ADMIN_API_KEY"}
    keys = {field: os.environ[name] for field, name in names.items() if name in os.environ}
    for field, key in keys.items():
        if not key.strip():  # most likely a missing secret: never start an open server
            message = f"{names[field]} is set but empty; unset it for a server without this key"
            raise ConfigError(message, field=field, value="", limit="a key")
    return keys


def names(value: str | None) -> tuple[str, ...]:
    """The parts of a list that is separated by commas, in lower case."""
    return tuple(part.strip().lower() for part in (value or "").split(",") if part.strip())


def _key(name: str, value: Any) -> str:
    """A key without the white space around it, which no HTTP header can carry."""
    key = value.strip() if isinstance(value, str) else ""
    if not key or not key.isprintable():
        message = f"{name} must be a string of printable characters that is not empty; leave it out for no key"
        raise ConfigError(message, field=name, value="", limit="printable characters")
    return key
