"""A server on a GPU, as users start it: `shop` over HTTP, questions at once, answers checked.

    python benchmarks/gpu_session/server.py --out out/server-gpu.json

Counts right answers, failures and cached tokens, and takes the time until the server was ready and of each answer. The
file is written after each round: the first fills the cache, the second finds the prefixes, the third streams.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shoal.provenance import commit, hardware
from shoal.shop.task import KINDS, chat, make_list, make_question

ROUNDS = (("cold", False), ("hits", False), ("streamed", True))


def ask(url: str, messages: list[dict[str, str]], stream: bool) -> dict[str, Any]:
    """Text, cached tokens and seconds of one chat; `error` where there was one."""
    body = {"messages": messages, "max_tokens": 32, "stream": stream}
    body |= {"stream_options": {"include_usage": True}} if stream else {}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    begin = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            text, usage = read(reply.read().decode(), stream)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {"text": text.strip(), "cached": cached, "seconds": time.perf_counter() - begin}


def read(body: str, stream: bool) -> tuple[str, dict[str, Any]]:
    """The text of an answer and its usage."""
    if not stream:
        whole = json.loads(body)
        return whole["choices"][0]["message"]["content"], whole["usage"]
    text = ""
    usage: dict[str, Any] = {}
    for line in body.splitlines():
        if line.startswith("data: {"):
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    return text, usage


def wait_until_ready(url: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    """RuntimeError when the server ended, or is not there after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server did not get ready")


def round_of(url: str, stream: bool, count: int) -> dict[str, object]:
    """`count` questions about two lists, all at once."""
    rng = random.Random(7)
    prices = [make_list(rng, size, held_out=True) for size in (20, 60)]
    questions = [make_question(rng, prices[i % 2], KINDS[i % len(KINDS)]) for i in range(count)]
    chats = [chat(prices[i % 2], [], question.text) for i, question in enumerate(questions)]
    begin = time.perf_counter()
    with ThreadPoolExecutor(count) as threads:
        answers = list(threads.map(lambda messages: ask(url, messages, stream), chats))
    good = [(answer, q) for answer, q in zip(answers, questions, strict=True) if "error" not in answer]
    times = sorted(answer["seconds"] for answer, _ in good)
    return {
        "requests": count, "failed": count - len(good), "seconds": round(time.perf_counter() - begin, 3),
        "right": sum(answer["text"] == question.answer for answer, question in good),
        "cached_tokens": sum(answer["cached"] for answer, _ in good),
        "median_s": round(times[len(times) // 2], 3) if times else None,
        "longest_s": round(times[-1], 3) if times else None,
        "errors": sorted({answer["error"] for answer in answers if "error" in answer})[:3],
    }  # fmt: skip


def main() -> int:
    """Start, ask, stop; 0 when every request was answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--requests", type=int, default=32, help="in a round")
    parser.add_argument("--ready-limit", type=float, default=75.0, help="seconds for the server's start")
    parser.add_argument("--commit", default=None)
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--model-path", "shop", "--device", args.device, "--port", str(port), "--kv-cache-tokens", "65536"]
    report: dict[str, Any] = {
        "command": " ".join(["python -m shoal.launch_server", *options[:4]]), "commit": args.commit or commit(),
        "hardware": hardware(),
    }  # fmt: skip

    def write() -> None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(report, flush=True)

    begin, url = time.perf_counter(), f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "shoal.launch_server", *options], env=os.environ)
    try:
        wait_until_ready(url, process, args.ready_limit)
        report["ready_s"] = round(time.perf_counter() - begin, 1)
        for name, stream in ROUNDS:
            report[name] = round_of(url, stream, args.requests)
            write()
        process.send_signal(signal.SIGTERM)
        report["exit_status"] = process.wait(30)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        report["error"] = str(error)
    finally:
        if process.poll() is None:
            process.kill()
        write()
    answered = all(report.get(name, {}).get("failed") == 0 for name, _ in ROUNDS)
    return 0 if answered and report.get("exit_status") == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
