"""What an eviction must do, by scanning all nodes for the lowest key at every step."""

from .model import bands, states
from .world import BAND, BOUNDARIES, LAYERS, LEVELS


def cell_values():
    """Layers per byte of what each level adds, scaled to 1 for the best; KV pages weigh 8, boundary pages 1."""
    values = [0.0]
    for level in range(1, len(LEVELS)):
        size = 8 * (-(-LEVELS[level] // BAND) - -(-LEVELS[level - 1] // BAND))
        size += LEVELS[level] in BOUNDARIES and LEVELS[level] < LAYERS
        values.append((LEVELS[level] - LEVELS[level - 1]) / size)
    return [value / max(values) for value in values]


def predict_eviction(world, policy, num_kv, num_boundary):
    """({(namespace, first prefix, last prefix): level} afterwards, whether no two candidates ever tied)."""
    values = cell_values()
    rows = []
    for node, namespace, pages in world.layout():
        rows.append({"node": node, "ns": namespace, "pages": pages, "level": node.level, "gone": False})

    def key(row):
        node = row["node"]
        if policy == "lru":
            return (node.last_used,)
        if policy == "lfu":
            return (sum(node.hits), node.last_used)
        if policy == "slru":
            return (sum(node.hits) > 1, node.last_used)
        uses = 1 + sum(node.hits[row["level"] :])
        return (node.age + uses * values[row["level"]], node.last_used)

    def candidate(row):
        if row["gone"] or not row["level"] or row["node"].in_use:
            return False
        children = [other for other in rows if other["node"].parent is row["node"] and not other["gone"]]
        if policy == "cost":
            return all(other["level"] < row["level"] for other in children)
        return not children

    exact = True
    kv = boundary = 0
    while kv < num_kv or boundary < num_boundary:
        candidates = sorted((row for row in rows if candidate(row)), key=key)
        if not candidates:
            break
        if len(candidates) > 1 and key(candidates[0]) == key(candidates[1]):
            exact = False
        row = candidates[0]
        node, before = row["node"], row["level"]
        after = before - 1 if policy == "cost" else 0
        kv += int((world.kv.refcount(node.kv[bands(after) : bands(before)]) == 1).sum())
        boundary += int((world.boundary.refcount(node.boundary[states(after) : states(before)]) == 1).sum())
        row["level"] = after
        row["gone"] = not after
    left = {(row["ns"], row["pages"][0], row["pages"][-1]): row["level"] for row in rows if not row["gone"]}
    return left, exact
