"""Seeded faults in the tree and the allocator: each must be caught by the state machine alone.

    python tests/radix_cache/mutations.py [--examples 60] [--steps 50] [--only NAME] [--markdown FILE]

Each fault is applied to a copy of the package in a temporary folder, and the state machine runs against that copy.
The table says whether it was caught and by what. Exit status 1 when one survives, or when the copy without a fault
fails.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Mutation(NamedTuple):
    """Replace `old` (which must occur exactly once in `file`) by `new`."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = [
    Mutation(
        "split: the upper part forgets its locks",
        "node.py",
        "upper.locks = self.locks",
        "upper.locks = 0",
    ),
    Mutation(
        "split: the upper part forgets its pins",
        "node.py",
        "upper.pins = self.pins",
        "upper.pins = 0",
    ),
    Mutation(
        "split: the lower part's parent is not set",
        "node.py",
        "        self.parent = upper\n",
        "",
    ),
    Mutation(
        "split: both parts share the hit counters",
        "node.py",
        "self.level, self.hits.copy())",
        "self.level, self.hits)",
    ),
    Mutation(
        "split: the upper part takes its page ids from the end",
        "node.py",
        "upper.kv = self.kv[:, :pages].copy()",
        "upper.kv = self.kv[:, -pages:].copy()",
    ),
    Mutation(
        "split: the capture ratio is lost",
        "node.py",
        "        upper.ratio = self.ratio\n",
        "",
    ),
    Mutation(
        "match: common prefix not rounded down to pages",
        "match.py",
        "return same * page_bytes",
        "return min(same * page_bytes + page_bytes, size)",
    ),
    Mutation(
        "match: the cut ignores the profile",
        "match.py",
        "level = min(level, config.level_at[profile.depth(length / total_tokens)])",
        "config.level_at[profile.depth(length / total_tokens)]",
    ),
    Mutation(
        "match: the first cut wins, not the best",
        "match.py",
        "if level and saved >= best_saved:",
        "if level and not best_saved:",
    ),
    Mutation(
        "match: boundary states of the level below",
        "match.py",
        "row = level - 1 if config.levels[level]",
        "row = max(0, level - 2) if config.levels[level]",
    ),
    Mutation(
        "match: namespaces are ignored",
        "tree.py",
        "        root = storage.roots.get(namespace)\n        if root is None:\n            return Match(",
        "        root = next(iter(storage.roots.values()), None)\n        if root is None:\n            return Match(",
    ),
    Mutation(
        "lock: only the last node is locked",
        "storage.py",
        "                node.pins += 1\n            assert node.parent is not None\n            node = node.parent",
        "                node.pins += 1\n            break",
    ),
    Mutation(
        "lock: no reference on the boundary pages",
        "storage.py",
        "                self.boundary.acquire(match.boundary_pages)\n",
        "                pass\n",
    ),
    Mutation(
        "lock: a stale match is not noticed",
        "tree.py",
        "if node.generation != match.generation and not still_valid(match, self.config):",
        "if node.parent is None:",
    ),
    Mutation(
        "lock: references stay put off when pages go",
        "storage.py",
        "            self.write_references()\n",
        "            pass\n",
    ),
    Mutation(
        "lock: written references are taken for put off",
        "storage.py",
        "        self.deferred.clear()\n",
        "",
    ),
    Mutation(
        "unlock: references that were never written are given back",
        "storage.py",
        "if self.deferred.pop(id(match), None) is None:",
        "if self.deferred.pop(id(match), None) is None or True:",
    ),
    Mutation(
        "split: the upper part's marks are taken for settled",
        "storage.py",
        "            self.stale[upper] = None\n",
        "            pass\n",
    ),
    Mutation(
        "marks: a node that came into use stays offered",
        "storage.py",
        "                    del stale[node]\n                else:\n                    stale[node] = None\n",
        "                    stale.pop(node, None)\n",
    ),
    Mutation(
        "capture: a child may become deeper than its parent",
        "capture.py",
        "limit = min(limit, child.level)",
        "limit = max(limit, child.level)",
    ),
    Mutation(
        "capture: raises at a worse ratio",
        "capture.py",
        "return ratio > node.ratio if node.drifted else ratio >= node.ratio",
        "return True",
    ),
    Mutation(
        "capture: an audited node is raised at the same ratio",
        "capture.py",
        "return ratio > node.ratio if node.drifted else ratio >= node.ratio",
        "return ratio >= node.ratio",
    ),
    Mutation(
        "capture: missing pages (-1) are stored",
        "page_allocator.py",
        "            return kept, None\n",
        "            return abs(kept), abs(where)\n",
    ),
    Mutation(
        "eviction: locked nodes are not spared",
        "node.py",
        "return self.locks > 0 or self.pins > 0",
        "return self.pins > 0",
    ),
    Mutation(
        "eviction: pinned nodes are not spared",
        "node.py",
        "return self.locks > 0 or self.pins > 0",
        "return self.locks > 0",
    ),
    Mutation(
        "eviction: stale keys are not renewed",
        "eviction.py",
        "            if key == entry[:2]:\n                return node, key\n",
        "            return node, key\n",
    ),
    Mutation(
        "eviction: a node with children is a leaf",
        "eviction.py",
        "return not node.children",
        "return True",
    ),
    Mutation(
        "eviction: the parent of a dropped leaf is not queued",
        "storage.py",
        "        self.queue.push(parent)\n",
        "",
    ),
    Mutation(
        "eviction: an unlocked node is not queued again",
        "storage.py",
        "                    boundary += boundaries_at[node.level] * node.num_pages\n"
        "                    self.queue.push(node)\n",
        "                    boundary += boundaries_at[node.level] * node.num_pages\n",
    ),
    Mutation(
        "trim: pages above are not released",
        "storage.py",
        "freed = freed._replace(kv=self.kv.give_up(kv_ids))",
        "freed = freed._replace(kv=0)",
    ),
    Mutation(
        "shrink: the subtree keeps its depth",
        "storage.py",
        "            order.extend(child for child in above.children.values() if child.level > level)\n",
        "            pass\n",
    ),
    Mutation(
        "flush: ignores locks",
        "tree.py",
        "        if locks and not defer:\n            raise TreeInUseError(locks)\n",
        "",
    ),
    Mutation(
        "allocator: release frees at one reference left",
        "page_allocator.py",
        "return self._return(ids[after == 0])\n\n    def refcount",
        "return self._return(ids[after <= _REFERENCE])\n\n    def refcount",
    ),
    Mutation(
        "allocator: the reclaimable count misses acquires",
        "page_allocator.py",
        "        self._state[where] = state + _REFERENCE\n"
        "        self._reclaimable -= int(np.count_nonzero(state == _RECLAIMABLE))\n",
        "        self._state[where] = state + _REFERENCE\n",
    ),
    Mutation(
        "allocator: references that are put off are not counted",
        "page_allocator.py",
        "                np.add.at(counts, deferred, 1)\n",
        "                pass\n",
    ),
    Mutation(
        "allocator: rows at unequal distances are taken for a block",
        "page_allocator.py",
        "                if not table.startswith(row.data, at):\n",
        "                if not table.startswith(row.data[:1], at):\n",
    ),
    Mutation(
        "allocator: a page may be adopted twice",
        "page_allocator.py",
        'raise PageReferenceError("adopt: a page is named twice")',
        "pass",
    ),
    Mutation(
        "allocator: double release passes",
        "page_allocator.py",
        "        if int(state.min()) < _REFERENCE:\n",
        "        if int(state.min()) < -9:\n",
    ),
]


def run(mutation: Mutation | None, examples: int, steps: int) -> tuple[bool, str, float]:
    """(caught, by what, seconds) for one fault; None runs the sound copy."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "shoal"
        package.mkdir()
        (package / "__init__.py").write_text("")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "radix_cache", package / "radix_cache", ignore=ignored)
        tests = Path(folder) / "tests" / "radix_cache"
        shutil.copytree(Path(__file__).parent, tests, ignore=ignored)
        if mutation is not None:
            target = package / "radix_cache" / mutation.file
            source = target.read_text()
            if source.count(mutation.old) != 1:
                raise SystemExit(f"{mutation.name}: {source.count(mutation.old)} places in {mutation.file}, not 1")
            target.write_text(source.replace(mutation.old, mutation.new))
        begin = time.perf_counter()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-x", "--import-mode=importlib", "-p", "no:cacheprovider"),
                *("--hypothesis-seed", "1"),
                *("--rootdir", folder, "-c", os.devnull, str(tests / "test_state_machine.py")),
            ],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": folder,
                "SHOAL_RADIX_EXAMPLES": str(examples),
                "SHOAL_RADIX_STEPS": str(steps),
                "SHOAL_RADIX_NO_SHRINK": "1",
                "SHOAL_RADIX_PACKAGE": str(package),
            },
            capture_output=True,
            text=True,
            timeout=900,
        )
        seconds = time.perf_counter() - begin
    if done.returncode == 0:
        return False, "", seconds
    if done.returncode != 1:
        raise SystemExit(f"pytest failed to run:\n{done.stdout}{done.stderr}")
    errors = re.findall(r"^E\s+(\S*(?:Error|Exception)\b.*)$", done.stdout, re.MULTILINE)
    places = re.findall(r"^(\S+\.py:\d+): ", done.stdout, re.MULTILINE)
    reason = re.sub(r"^(\w+\.)+", "", errors[0]) if errors else "assert"
    where = Path(places[-1].split(":")[0]).name if places else ""
    reason = "assert" if reason.startswith("AssertionError") else reason[:70]
    return True, f"{reason} ({where})" if where else reason, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    options = parser.parse_args()
    sound_caught, reason, _ = run(None, options.examples, options.steps)
    if sound_caught:
        print(f"the sound package fails: {reason}")
        return 1
    lines = ["| fault | file | caught | by |", "|---|---|---|---|"]
    survivors = 0
    for mutation in MUTATIONS:
        if options.only and options.only not in mutation.name:
            continue
        caught, reason, seconds = run(mutation, options.examples, options.steps)
        survivors += not caught
        lines.append(f"| {mutation.name} | {mutation.file} | {'yes' if caught else '**no**'} | {reason} |")
        print(f"{'caught ' if caught else 'SURVIVED'} {seconds:5.1f} s  {mutation.name}: {reason}", flush=True)
    print("\n" + "\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
