"""The tree as data and as text."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .node import Node, Pages
from .storage import Storage

if TYPE_CHECKING:
    from rich.tree import Tree

FIRST_TOKENS = 8


def snapshot_tree(storage: Storage) -> dict[str, Any]:
    """JSON-able description of every namespace, nodes nested, oldest child first."""
    config = storage.config
    references = None if storage.kv is None else storage.kv.refcount(np.arange(storage.kv.num_pages))
    return {
        "format": "shoal-radix-tree",
        "version": 1,
        "page_size": config.page_size,
        "num_layers": config.num_layers,
        "layers_per_band": config.layers_per_band,
        "boundary_depths": list(config.boundary_depths),
        "policy": config.policy,
        "num_nodes": storage.num_nodes,
        "num_tokens": storage.num_tokens,
        "kv_pages": storage.num_kv_pages,
        "boundary_pages": storage.num_boundary_pages,
        "kv_bytes": storage.num_kv_pages * config.kv_page_bytes,
        "boundary_bytes": storage.num_boundary_pages * config.boundary_page_bytes,
        "evictable_kv_pages": storage.idle_kv_pages if storage.kv is None else storage.kv.num_reclaimable,
        "events": dict(storage.events.totals),
        "namespaces": [
            {
                "salt": namespace.salt,
                "capture": namespace.capture,
                "nodes": [_node(storage, child, references) for child in root.children.values()],
            }
            for namespace, root in storage.roots.items()
        ],
    }


def _node(storage: Storage, top: Node, references: Pages | None) -> dict[str, Any]:
    """One node and all below it (iteratively: a conversation of a thousand turns is a path of a thousand nodes)."""
    described = _describe(storage, top, references)
    stack = [(top, described)]
    while stack:
        node, data = stack.pop()
        for child in node.children.values():
            below = _describe(storage, child, references)
            data["children"].append(below)
            stack.append((child, below))
    return described


def _describe(storage: Storage, node: Node, references: Pages | None) -> dict[str, Any]:
    config = storage.config
    most = None
    if references is not None and node.kv is not None and node.kv.size:
        most = int(references[node.kv].max())
    return {
        "tokens": node.num_tokens,
        "first_tokens": node.token_ids[:FIRST_TOKENS].tolist(),
        "depth": config.levels[node.level],
        "ratio": node.ratio,
        "drifted": node.drifted,
        "bytes_by_band": [node.num_pages * config.kv_page_bytes] * config.bands_at[node.level],
        "boundary_bytes": node.num_pages * config.boundaries_at[node.level] * config.boundary_page_bytes,
        "references": most,
        "locks": node.locks,
        "pins": node.pins,
        "hits": sum(node.hits),
        "hits_by_depth": {str(depth): count for depth, count in zip(config.levels, node.hits, strict=True) if count},
        "last_used": node.last_used,
        "children": [],
    }


def render_tree(snapshot: dict[str, Any]) -> "Tree":
    """A rich tree of a snapshot: a bar of the valid depth, tokens, ratio, hits and holders of each node."""
    from rich.text import Text
    from rich.tree import Tree

    layers = snapshot["num_layers"]
    top = Tree(
        Text(
            f"radix tree: {snapshot['num_nodes']} nodes, {snapshot['num_tokens']} tokens, "
            f"{snapshot['kv_pages']} KV pages, {snapshot['boundary_pages']} boundary pages"
        )
    )
    for space in snapshot["namespaces"]:
        branch = top.add(Text(f"namespace {space['salt']!r}, capture {space['capture']}", style="bold"))
        stack = [(branch, node) for node in reversed(space["nodes"])]
        while stack:
            above, node = stack.pop()
            filled = round(8 * node["depth"] / layers)
            line = Text()
            line.append("█" * filled, style="cyan").append("░" * (8 - filled), style="dim")
            line.append(f" depth {node['depth']}/{layers}  {node['tokens']} tokens  ratio {node['ratio']:.2f}")
            line.append(f"  {node['hits']} hits", style="green" if node["hits"] else "dim")
            if node["locks"]:
                line.append(f"  {node['locks']} locks", style="yellow")
            if node["pins"]:
                line.append("  pinned", style="magenta")
            if node["drifted"]:
                line.append("  drifted", style="red")
            line.append(f"  {node['first_tokens']}", style="dim")
            below = above.add(line)
            stack.extend((below, child) for child in reversed(node["children"]))
    return top
