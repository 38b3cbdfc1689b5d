"""Rules that hold for the whole repository: imports, layers, safety, sizes, and what a wheel and an sdist contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("runtime", "radix_cache", "kernels", "frontend")
COMMANDS = tuple(
    f"shoal.{name}"
    for name in ("shop", "text", "demo", "profile", "chat", "bench", "replicas", "serve_ray", "cli", "launch_server")
)
MAX_TREE_BYTES, MAX_FILE_BYTES, MAX_LINES = 40_000_000, 16_000_000, 400


@cache
def files() -> list[Path]:
    """Files that git tracks or would track, relative to the root; links and deleted files left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        pytest.skip("not a git checkout")
    names = [Path(name) for name in run.stdout.split("\0") if name]
    return [name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


@cache
def modules() -> list[tuple[Path, ast.Module]]:
    return [(name, ast.parse((ROOT / name).read_text(encoding="utf-8"))) for name in files() if name.suffix == ".py"]


def imported(name: Path, tree: ast.Module) -> Iterator[str]:
    """Absolute names of what a file imports; `radix_cache/x.py` counts as `shoal.radix_cache.x`."""
    package = ["shoal", *name.parent.parts] if name.parts[0] in FOLDERS else list(name.parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def unsafe(name: Path, tree: ast.Module) -> list[str]:
    """What could run code out of data: pickles in any dress, and remote code."""
    found = [
        m
        for m in imported(name, tree)
        if within(m, "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "torch.load")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (
            ast.unparse(node) == "torch.load" or node.attr in ("send_pyobj", "recv_pyobj")
        ):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if (keyword.arg == "trust_remote_code" and value is not False) or (
                    keyword.arg == "allow_pickle" and value is True
                ):
                    found.append(f"{keyword.arg}={ast.unparse(keyword.value)}")
    return found


def test_no_second_copy_of_a_module():
    """`import runtime` would load every class again beside `shoal.runtime`."""
    wrong = {str(name): [m for m in imported(name, tree) if within(m, *FOLDERS)] for name, tree in modules()}
    assert {name: names for name, names in wrong.items() if names} == {}


def test_imports_are_read_as_python_reads_them():
    name, source = Path("kernels/rope.py"), "import runtime.x\nfrom . import a\nfrom ..radix_cache.tree import b"
    assert list(imported(name, ast.parse(source))) == ["runtime.x", "shoal.kernels.a", "shoal.radix_cache.tree.b"]
    assert list(imported(Path("tests/a/test_b.py"), ast.parse("from .c import d"))) == ["tests.a.c.d"]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("radix_cache", ("shoal.runtime", "shoal.kernels", "shoal.frontend", *COMMANDS, "torch", "transformers")),
        ("kernels", ("shoal.runtime", "shoal.radix_cache", "shoal.frontend", *COMMANDS, "transformers")),
        ("runtime", ("shoal.frontend", *COMMANDS)),
        ("frontend", ("shoal.kernels", "shoal.radix_cache", *COMMANDS)),
        ("kernels/layers", ("shoal.kernels.sampling",)),
        ("kernels/sampling", ("shoal.kernels.layers",)),
        ("kernels/attention", ("shoal.kernels.layers", "shoal.kernels.sampling")),
        ("frontend/backends", ("shoal.frontend.program",)),
        ("frontend/language", ("shoal.frontend.program", "shoal.frontend.backends")),
    ],
)
def test_layers(folder, forbidden):
    own = [(name, tree) for name, tree in modules() if name.is_relative_to(folder)]
    assert own
    wrong = {str(name): [m for m in imported(name, tree) if within(m, *forbidden)] for name, tree in own}
    assert {name: names for name, names in wrong.items() if names} == {}


ARROWS = {
    "text": set(),
    "grammar": {"text"},
    "model": {"text"},
    "request": {"text", "grammar", "model"},
    "service": {"text", "request"},
    "scheduler": {"request"},
    "worker": {"grammar", "model", "request"},
    "engine": {"text", "model", "request", "service", "scheduler", "worker"},
    "pipeline": {"text", "model", "request", "service", "scheduler", "worker"},
    "http": {"text", "request", "service"},
}
"""What each wing of runtime/ may import, beside the files that stand in runtime/ itself; these import no wing."""


@cache
def graph() -> dict[str, set[str]]:
    """Modules of the package by name, and the modules of the package that each imports: in functions and for types
    alone too.

    Without `shoal` itself: it has the version, and loads the public names when they are asked for.
    """
    own = [(name, tree) for name, tree in modules() if name.parts[0] in (*FOLDERS, "shoal")]
    own = [(name, tree) for name, tree in own if name != Path("shoal/__init__.py")]
    names = {module_name(name) for name, _ in own}
    found = {}
    for name, tree in own:
        targets = (imported_module(target, names) for target in imported(name, tree))
        found[module_name(name)] = {target for target in targets if target} - {module_name(name)}
    return found


def module_name(path: Path) -> str:
    parts = [*path.parts[:-1], *([] if path.stem == "__init__" else [path.stem])]
    return ".".join(parts if parts[0] == "shoal" else ["shoal", *parts])


def imported_module(target: str, names: set[str]) -> str | None:
    """The module that an imported name belongs to; None for none of the package's."""
    while target and target not in names:
        target = target.rpartition(".")[0]
    return target or None


def wing(module: str) -> str | None:
    """The folder of runtime/ that a module is in; None for modules of runtime/ itself and outside of it."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["shoal", "runtime"] and parts[2:3] and parts[2] in ARROWS else None


@pytest.mark.parametrize("name", [*ARROWS, None])
def test_arrows_of_runtime(name):
    own = {module: targets for module, targets in graph().items() if wing(module) == name}
    if name is None:
        own = {module: targets for module, targets in own.items() if within(module, "shoal.runtime")}
    assert own
    allowed = ARROWS[name] | {name} if name else set()
    wrong = {
        module: sorted(t for t in targets if wing(t) and wing(t) not in allowed) for module, targets in own.items()
    }
    assert {module: targets for module, targets in wrong.items() if targets} == {}


def levels(arrows: dict[str, set[str]]) -> int:
    """Nodes of the longest chain of arrows."""

    @cache
    def depth(node: str) -> int:
        return 1 + max((depth(target) for target in arrows[node]), default=0)

    return max(map(depth, arrows))


def test_levels_of_runtime():
    """Wings, and the files of runtime/ itself as the lowest level."""
    assert levels({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 3
    assert levels(ARROWS) + 1 <= 8


def test_every_wing_of_runtime_has_its_arrows():
    wings = {name.parts[1] for name, _ in modules() if name.parts[0] == "runtime" and len(name.parts) > 2}
    assert wings == set(ARROWS)


def test_scheduler_and_worker_meet_in_their_messages():
    """What both import of runtime/request is the messages between them, the facts that the worker reports at its start,
    and what these are made of."""
    both = [{t for m, ts in graph().items() if wing(m) == side for t in ts} for side in ("scheduler", "worker")]
    shared = {
        module.removeprefix("shoal.runtime.request.") for module in both[0] & both[1] if wing(module) == "request"
    }
    assert "forward" in shared
    assert shared <= {"facts", "forward", "sampling_params"}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty when there is none."""
    left = {module: set(targets) for module, targets in arrows.items()}
    while leaves := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in leaves:
            del left[module]
    return sorted(left)


def test_no_circle():
    """Not by imports in functions or for types alone either."""
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]
    assert {"shoal.radix_cache.match", "shoal.frontend.program.state"} <= graph().keys()
    assert circle(graph()) == []


def loaded_by(statement: str) -> set[str]:
    """Top-level packages, and shoal's own, that a statement loads in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = run.stdout.split()
    return {name.partition(".")[0] for name in names} | {name for name in names if name.count(".") == 1}


def test_import_of_shoal_is_light():
    heavy = {"torch", "transformers", "triton", "numpy", "matplotlib", "zmq", "tokenizers", "huggingface_hub"}
    assert loaded_by("import shoal") & heavy == set()
    assert "numpy" in loaded_by("import numpy")


def test_radix_cache_loads_nothing_of_the_rest():
    names = loaded_by("import shoal.radix_cache.tree")
    assert "numpy" in names
    assert names & {"torch", "transformers", "shoal.runtime", "shoal.kernels", "shoal.frontend"} == set()


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTION = {"zmq": "pyzmq", "yaml": "pyyaml", "PIL": "pillow", "markdown_it": "markdown-it-py"}
OURS = {"shoal", "tests", "benchmarks", "common"}
NEVER_IMPORTED = {
    "pybase64": "sglang 0.5.2 needs it and does not say so",
    "pytest-timeout": "a plugin",
    "pytest-xdist": "a plugin",
    "setuptools": "builds the wheel and the sdist below, in processes of their own",
    "lm-eval": "run as a program",
    "sglang-router": "run as a program",
    "mkdocs-material": "a theme",
    "mkdocstrings": "a plugin",
    "ruff": "run as a program",
    "mypy": "run as a program",
}


def plain(name: str) -> str:
    return re.match(r"[\w.-]+", name)[0].lower().replace("_", "-")  # type: ignore[index]


def imports_of(*folders: str) -> set[str]:
    """Distributions that files in these folders at the root import."""
    names = {
        module.partition(".")[0]
        for name, tree in modules()
        if name.parts[0] in folders
        for module in imported(name, tree)
    }
    return {plain(DISTRIBUTION.get(name, name)) for name in names - sys.stdlib_module_names - OURS - {""}}


def test_what_is_imported_is_declared_and_what_is_declared_is_used():
    needed = set(map(plain, PROJECT["dependencies"]))
    optional = {plain(line) for extra in PROJECT["optional-dependencies"].values() for line in extra}
    package = imports_of("shoal", *FOLDERS)
    assert {"torch", "pyzmq", "starlette", "pydantic"} <= package
    # frontend/backends/sglang.py, for programs that have it; shoal/text/base.py, for those who make that model;
    # shoal/serve_ray/, for those who serve on Ray
    assert package - needed == {"sglang", "gguf", "ray"}
    everything = package | imports_of("tests", "benchmarks", "examples", "docs")
    assert everything - needed - optional == set()
    assert needed & optional == set()
    assert (needed | optional) - everything == set(NEVER_IMPORTED)


def test_every_dependency_has_a_pinned_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain(line) for line in lines if "==" in line}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert {plain(line) for group in groups for line in group} - pinned == set()


def test_nothing_unpickles_or_runs_remote_code():
    found = {str(name): unsafe(name, tree) for name, tree in modules()}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "f('x', trust_remote_code=True)",
        "f('x', trust_remote_code=flag)",
        "np.load('x', allow_pickle=True)",
        "socket.recv_pyobj()",
    ],
)
def test_unsafe_code_is_seen(source):
    assert unsafe(Path("runtime/x.py"), ast.parse(source))


def test_no_paths_of_one_machine():
    machine = re.compile(rb"(?<![\w./:])/(?:work|root|home|Users|mnt)/\w")
    assert machine.search(b" '/" + b"root/x'")
    found = [str(name) for name in files() if machine.search((ROOT / name).read_bytes())]
    assert found == []


def test_repository_is_small():
    sizes = {str(name): (ROOT / name).stat().st_size for name in files()}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES} == {}
    assert sum(sizes.values()) < MAX_TREE_BYTES


def test_files_are_short():
    folders = (*FOLDERS, "shoal", "tests")
    own = [name for name, _ in modules() if name.parts[0] in folders]
    lines = {str(name): len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in own}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, out: Path) -> Path:
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return out / run.stdout.split()[-1]


def contents() -> set[str]:
    """What a distribution must contain: every module of the package, the bundled model's files and the playground's."""
    out = set()
    for name in files():
        inside = Path("shoal", *name.parts) if name.parts[0] in FOLDERS else name
        data = (Path("shoal/shop/model"), Path("shoal/runtime/http/playground"))
        if inside.parts[0] == "shoal" and (inside.suffix == ".py" or inside.parent in data):
            out.add(str(inside))
    return out


def test_wheel_and_sdist_are_complete(tmp_path):
    """A wheel of the tree, and a wheel of its sdist, as `pip install` of either makes them."""
    tree, unpacked = tmp_path / "tree", tmp_path / "unpacked"
    for name in files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    for folder in FOLDERS:
        (tree / "shoal" / folder).symlink_to(Path("..", folder))
    wanted = contents() | {"shoal/py.typed"}
    assert {"shoal/runtime/model/decoder.py", "shoal/radix_cache/tree.py", "shoal/shop/model/config.json"} <= wanted

    sdist = build("sdist", tree, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    names = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert wanted | {"LICENSE", "README.md", "pyproject.toml"} <= names
    assert {name for name in names if "/" in name and not name.startswith(("shoal/", "shoal.egg-info/"))} == set()

    wheels = [build("wheel", origin, tmp_path / place) for origin, place in ((tree, "one"), (source, "two"))]
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as package:
            names = set(package.namelist())
            assert wanted <= names
            assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"shoal"}
            assert any(name.endswith("LICENSE") for name in names)
            assert {plain(line) for line in PROJECT["dependencies"]} <= {plain(r) for r in requirements(package)}


def requirements(package: zipfile.ZipFile) -> set[str]:
    """Names of what a wheel requires."""
    (metadata,) = (name for name in package.namelist() if name.endswith(".dist-info/METADATA"))
    return set(re.findall(r"^Requires-Dist: ([\w-]+)", package.read(metadata).decode(), re.MULTILINE))
