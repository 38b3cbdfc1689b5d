"""A brute-force model of the tree: one entry per (namespace, page-aligned prefix), no nodes, no sharing of code.

Where an operation works on whole nodes (a use, a shrink, a raise), the machine tells the model which pages hang
together; what must then happen to them is decided here.
"""

from dataclasses import dataclass, field

from .world import BAND, BOUNDARIES, LAYERS, LEVELS, PAGE, prefixes


def floor_level(depth):
    """The deepest level that is not below layer `depth`."""
    return max(level for level, at in enumerate(LEVELS) if at <= depth)


def bands(level):
    return -(-LEVELS[level] // BAND)


def states(level):
    return sum(at <= LEVELS[level] for at in BOUNDARIES)


@dataclass
class Cell:
    """What is cached for one page of a prefix."""

    level: int
    kv: list
    boundary: list
    ratio: float
    drifted: bool = False
    hits: list = field(default_factory=lambda: [0] * len(LEVELS))

    def plain(self):
        return (self.level, tuple(self.kv), tuple(self.boundary), self.ratio, self.drifted, tuple(self.hits))


class Model:
    """Cells by (namespace, prefix)."""

    def __init__(self):
        self.cells: dict = {}

    def match(self, tokens, namespace, total, profile, max_tokens):
        """(matched, cut, depth, kv, boundary) by trying every page-aligned cut."""
        path = []
        for prefix in prefixes(tokens[:max_tokens]):
            cell = self.cells.get((namespace, prefix))
            if cell is None:
                break
            path.append(cell)
        best = (0, 0, 0)
        for pages in range(1, len(path) + 1):
            cut = pages * PAGE
            level = min(cell.level for cell in path[:pages])
            if profile is not None:
                level = min(level, floor_level(profile.depth(cut / total)))
            if level:
                best = max(best, (cut * LEVELS[level], cut, level))
        _, cut, level = best
        used = path[: cut // PAGE]
        kv = [[cell.kv[band] for cell in used] for band in range(bands(level))]
        boundary = [cell.boundary[level - 1] for cell in used] if level and LEVELS[level] < LAYERS else []
        return (len(path) * PAGE, cut, LEVELS[level], kv, boundary)

    def capture(self, tokens, namespace, depth, kv, boundary, ratio, stretches):
        """Apply a capture; `stretches` are the (start, stop) page ranges of the nodes along the prompt."""
        keys = [(namespace, prefix) for prefix in prefixes(tokens)]
        limit = floor_level(depth)
        new_tokens = token_layers = 0
        took_kv, took_boundary = [], []
        known = stretches[-1][1] if stretches else 0
        for start, stop in [*stretches, (known, len(keys))]:
            stretch = keys[start:stop]
            if not stretch:
                continue
            nothing = Cell(0, [], [], 0.0)
            old = [self.cells.get(key, nothing) for key in stretch]
            first = old[0]
            before = first.level
            assert all(cell.level == before for cell in old)
            allowed = not before or (ratio > first.ratio if first.drifted else ratio >= first.ratio)
            rows = range(bands(before), bands(limit))
            depths = range(states(before), states(limit))
            pages = range(start, stop)
            has_all = all(kv[band][page] >= 0 for band in rows for page in pages) and all(
                boundary[BOUNDARIES[at]][page] >= 0 for at in depths for page in pages
            )
            if before < limit and allowed and has_all:
                for key, page in zip(stretch, pages, strict=True):
                    cell = self.cells.setdefault(key, Cell(0, [], [], ratio))
                    cell.level, cell.ratio, cell.drifted = limit, ratio, False
                    cell.kv += [int(kv[band][page]) for band in rows]
                    cell.boundary += [int(boundary[BOUNDARIES[at]][page]) for at in depths]
                took_kv += [int(kv[band][page]) for band in rows for page in pages]
                took_boundary += [int(boundary[BOUNDARIES[at]][page]) for at in depths for page in pages]
                token_layers += len(stretch) * PAGE * (LEVELS[limit] - LEVELS[before])
                new_tokens += 0 if before else len(stretch) * PAGE
            else:
                limit = min(limit, before)
        return (len(keys) * PAGE, new_tokens, token_layers, took_kv, took_boundary)

    def lower(self, keys, level, drifted):
        """Lower cells to `level`; at 0 they are gone."""
        for key in keys:
            cell = self.cells.get(key)
            if cell is None or cell.level <= level:
                continue
            cell.level = level
            cell.drifted = cell.drifted or drifted
            del cell.kv[bands(level) :]
            del cell.boundary[states(level) :]
            if not level:
                del self.cells[key]

    def below(self, namespace, prefix):
        """Keys of all cells whose prefix continues `prefix`."""
        return [key for key in self.cells if key[0] == namespace and key[1][: len(prefix)] == prefix]
