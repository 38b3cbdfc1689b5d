"""`python -m shoal.launch_server`: serve a model over HTTP. Flags and help come from the configuration classes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .idle_flags import Options, check_idle_flags
from .replicas import ReplicaConfig, Replicas, check_router, count_gpus
from .runtime.config import EngineConfig
from .runtime.errors import ConfigError, ShoalError
from .runtime.flags import add_flags, given
from .runtime.http.config import ServerConfig, keys_from_environment
from .runtime.model.hub import local_model_folder
from .runtime.model.registry import load_config
from .runtime.model.slices import check_tp_size
from .runtime.pipeline.config import PipelineConfig
from .runtime.text.tokenizer import check_tokenizer_files
from .runtime.worker.trace import why_not_writable

if TYPE_CHECKING:
    from .runtime.http.server import StartableService

EXIT_USAGE = 2


def make_parser(program: str | None = None) -> argparse.ArgumentParser:
    """The command line: every field of EngineConfig, PipelineConfig, ServerConfig and ReplicaConfig."""
    parser = argparse.ArgumentParser(
        prog=program or "python -m shoal.launch_server",
        description="Serve a diffusion language model over HTTP: SGLang's native routes and OpenAI's.",
        usage="%(prog)s [MODEL] [options]",
        epilog="The keys can also be given in the environment: SHOAL_API_KEY, SHOAL_ADMIN_API_KEY.",
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="The same as --model-path.")
    for config in (EngineConfig, PipelineConfig, ServerConfig, ReplicaConfig):
        add_flags(parser, config)
    return parser


def parse(arguments: Sequence[str] | None = None, program: str | None = None) -> argparse.Namespace:
    """The given options, with MODEL as `model_path`; exits with 2 for an unreadable command line."""
    parser = make_parser(program)
    # Not parse_args: before Python 3.12.7 that takes MODEL for absent when it comes behind a flag.
    namespace = parser.parse_intermixed_args(arguments)
    if namespace.model is not None:
        if "model_path" in namespace:
            parser.error(f"the model is given twice: {namespace.model} and --model-path {namespace.model_path}")
        namespace.model_path = namespace.model
    return namespace


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Serve until told to stop; returns the exit code: 0 after a signal, 1 after a failure, 2 for invalid options."""
    namespace = parse(arguments, program)
    _open_standard_files()
    try:
        engine = EngineConfig(**given(namespace, EngineConfig))
        server = ServerConfig(**{**keys_from_environment(), **given(namespace, ServerConfig)})
        pipeline = PipelineConfig(**given(namespace, PipelineConfig))
        replicas = ReplicaConfig(**given(namespace, ReplicaConfig))
        check_idle_flags(vars(namespace).keys(), Options(engine, pipeline, server, replicas))
        _check_folder(engine)
        _check_profile_dir(server)
        from .runtime.daemon_call import end_without_waiting
        from .runtime.http.server import run_server
        from .runtime.logs import configure_logging

        configure_logging(server.log_level, server.log_json, server.log_requests)
        if replicas.dp_size > 1:
            check_router()
            gpus = 0 if engine.device == "cpu" else count_gpus()
            return Replicas(replicas, engine, pipeline, server, gpus).run()
        service: StartableService
        if server.in_process:
            from .runtime.cpu_tuning import limit_spinning

            limit_spinning()
            from .runtime.engine.service import LocalService

            service = LocalService(engine)
        else:
            from .runtime.pipeline.client import PipelineClient

            service = PipelineClient(engine, pipeline, log_level=server.log_level, log_json=server.log_json)
        code = run_server(service, server, engine.model_path)
        end_without_waiting(code)
        return code
    except ShoalError as error:
        print(f"error: {' '.join(error.message.split())}", file=sys.stderr)
        return EXIT_USAGE


def _check_folder(config: EngineConfig) -> None:
    """Raise ModelLoadError or ConfigError for a model that can't be served, as far as its configuration shows."""
    folder = local_model_folder(config.model_path)
    if folder is not None:
        check_tp_size(load_config(folder, config.mask_token_id), config.tp_size)
        if config.load_format == "auto":
            check_tokenizer_files(folder)


def _check_profile_dir(config: ServerConfig) -> None:
    """Raise ConfigError now if no trace can be written there, rather than at the first /start_profile."""
    if config.profile_dir is not None and (reason := why_not_writable(Path(config.profile_dir))) is not None:
        limit = "a folder that the server can write to"
        message = f"profile_dir is {config.profile_dir!r}; it must be {limit} ({reason})"
        raise ConfigError(message, field="profile_dir", value=config.profile_dir, limit=limit)


def _open_standard_files() -> None:
    """Open the null device for closed standard input, output or error: otherwise sockets would take their numbers,
    which event loops and child processes do not expect.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


if __name__ == "__main__":
    sys.exit(main())
