"""The command line: `shoal bench`, `chat`, `demo`, `generate`, `profile`, `serve`, `version`. Heavy imports happen
inside.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__

EXIT_USAGE = 2


class _Commands(TyperGroup):
    """Prints a user's error as one line and exits with 2; other errors keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        from .radix_cache.errors import RadixCacheError
        from .runtime.errors import ShoalError

        try:
            return super().invoke(ctx)
        except (ShoalError, RadixCacheError) as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise SystemExit(EXIT_USAGE) from None


app = typer.Typer(
    cls=_Commands,
    help="Serving runtime for diffusion language models with bidirectional prefix caching.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print shoal's version and exit.")
    ] = False,
) -> None:
    from .runtime.cpu_tuning import limit_spinning

    limit_spinning()


@app.command()
def version() -> None:
    """Print shoal's version."""
    typer.echo(__version__)


@app.command()
def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer lists and questions: under a minute on 2 cores.")
    ] = False,
    questions: Annotated[int | None, typer.Option(help="Questions about each list.")] = None,
    list_sizes: Annotated[str | None, typer.Option(help="Items of each price list, as in 44,56,68.")] = None,
    modes: Annotated[str | None, typer.Option(help="Cache modes, as in none,dual,bicache.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of lists and questions.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also plot accuracy and speed against depth (.png, .svg or .pdf).")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write all figures to this file.")] = None,
) -> None:
    """Answers, speed and reuse of every cache mode with the bundled model.

    A table of the modes, accuracy by kind of question, the radix tree with its depths, and accuracy and speed against
    depth. Options override what --quick chooses.
    """
    from rich.console import Console

    from .demo.main import QUICK, DemoOptions, run_demo

    given = {
        "questions": questions,
        "list_sizes": None if list_sizes is None else _integers("--list-sizes", list_sizes),
        "modes": None if modes is None else _names(modes),
        "seed": seed,
        "plot": plot,
        "json": json,
        "command": shlex.join(["shoal", *sys.argv[1:]]),
    }
    chosen = {**(QUICK if quick else {}), **{name: value for name, value in given.items() if value is not None}}
    run_demo(DemoOptions(**chosen), Console(width=None if sys.stdout.isatty() else 100))


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="shop (the bundled model), a model folder, or a hub id.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue, as it is; - reads it from stdin.")] = None,
    chat: Annotated[
        str | None, typer.Option(help="A user message for the model's chat template; - reads stdin.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="With --chat: the system message.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Canvas length.")] = None,
    block_length: Annotated[int | None, typer.Option(help="Canvas positions decoded together.")] = None,
    steps: Annotated[int | None, typer.Option(help="Fixed number of forward passes for the canvas.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Commit what is at least this sure (0 to 1).")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the most probable token.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws, with a temperature.")] = None,
    cache_mode: Annotated[str | None, typer.Option(help="none, prefix, dual, lm or bicache.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")] = False,
) -> None:
    """Generate for one prompt; print the text, and its cost on stderr."""
    if (prompt is None) == (chat is None):
        raise typer.BadParameter("give exactly one of --prompt and --chat")
    if system is not None and chat is None:
        raise typer.BadParameter("--system goes with --chat")
    from .runtime.engine.engine import Engine
    from .runtime.request.sampling_params import SamplingParams

    sampling = SamplingParams(
        **_given(
            max_new_tokens=max_new_tokens, block_length=block_length, steps=steps, threshold=threshold,
            temperature=temperature, seed=seed,
        )
    )  # fmt: skip
    request: Any = _text(prompt)
    if chat is not None:
        request = [] if system is None else [{"role": "system", "content": system}]
        request.append({"role": "user", "content": _text(chat)})
    with Engine(model, **_given(cache_mode=cache_mode, device=device, dtype=dtype)) as engine:
        output = engine.generate(request, sampling)
    _print_output(output, as_json=json)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def serve(context: typer.Context) -> None:
    """Serve a model over HTTP: the same as python -m shoal.launch_server (see shoal serve --help)."""
    from .launch_server import main

    raise typer.Exit(main(context.args, program="shoal serve"))


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def profile(context: typer.Context) -> None:
    """Measure how deep a shared prefix may be reused with a model and your data (see shoal profile --help)."""
    from .profile.command import main

    main(context.args)


@app.command()
def chat(
    url: Annotated[str, typer.Argument(help="Address of a server.")] = "http://127.0.0.1:30000",
    system: Annotated[str, typer.Option(help="System prompt; @FILE reads it from a file.")] = "",
    cache_mode: Annotated[str | None, typer.Option(help="none, prefix, dual, lm or bicache.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Canvas length.")] = None,
    block_length: Annotated[int | None, typer.Option(help="Canvas positions decoded together.")] = None,
    steps: Annotated[int | None, typer.Option(help="Fixed number of forward passes for the canvas.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Commit what is at least this sure (0 to 1).")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the most probable token.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="SHOAL_API_KEY", help="Key that the server asks for.")] = None,
) -> None:
    """Talk to a server and watch the canvas fill in. /help lists the commands of the conversation."""
    from rich.console import Console

    from .chat.main import Chat
    from .chat.server import ChatServer

    fields = _given(
        cache_mode=cache_mode, max_tokens=max_new_tokens, block_length=block_length, steps=steps, threshold=threshold,
        temperature=temperature,
    )  # fmt: skip
    console = Console()
    if system.startswith("@"):
        system = _read("--system", Path(system[1:])).strip()
    with ChatServer(url, api_key) as server:
        conversation = Chat(server, console, fields, system)
        conversation.open()
        conversation.run(lambda: console.input("[bold]> [/bold]"))


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench(context: typer.Context) -> None:
    """Run a benchmark by name, with its own options; without a name, list them."""
    from .bench import benchmarks, run

    if not context.args or context.args[0] in ("-h", "--help"):
        for name, words in benchmarks().items():
            typer.echo(f"{name:20}  {words}")
        return
    raise typer.Exit(run(context.args[0], context.args[1:]))


def _print_output(output: Any, *, as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict
        from json import dumps

        typer.echo(dumps({**asdict(output), "error": None}, indent=1))
        return
    typer.echo(output.text)
    typer.echo(
        f"[{output.finish_reason}: {output.prompt_tokens} prompt tokens, {output.completion_tokens} new, "
        f"{output.nfe} forward passes, {output.timings.total:.2f} s]",
        err=True,
    )


def _read(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"the file can't be read: {error}", param_hint=option) from None


def _text(value: str | None) -> str | None:
    return sys.stdin.read() if value == "-" else value


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r}; it must be whole numbers, as in 44,56,68", param_hint=option) from None


if __name__ == "__main__":
    app()
