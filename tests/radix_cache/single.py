"""A small tree and a request that captures into it, for tests that look at one thing."""

from shoal.radix_cache.page_allocator import PageAllocator
from shoal.radix_cache.tree import Namespace, RadixTree, TreeConfig

P = 4
CONFIG = TreeConfig(page_size=P, num_layers=16, layers_per_band=4, boundary_depths=(4, 8))


def make_world(**changes):
    """(tree, kv, boundary) with 400 and 200 pages; `changes` go to the config."""
    settings = {"page_size": P, "num_layers": 16, "layers_per_band": 4, "boundary_depths": (4, 8), **changes}
    kv, boundary = PageAllocator(400), PageAllocator(200)
    return RadixTree(TreeConfig(**settings), kv, boundary), kv, boundary


class Request:
    """A request's pages: what the scheduler would hold for it."""

    def __init__(self, tree, kv, boundary, tokens, depth=8, ratio=0.5, namespace=None):
        self.tree, self.kv, self.boundary = tree, kv, boundary
        pages = len(tokens) // P
        self.kv_pages = kv.alloc(tree.config.bands(depth) * pages).reshape(-1, pages)
        self.boundary_pages = {d: boundary.alloc(pages) for d in tree.config.boundary_depths if d <= depth}
        self.result = tree.capture(
            tokens,
            namespace or Namespace(),
            depth=depth,
            kv_pages=self.kv_pages,
            boundary_pages=self.boundary_pages,
            ratio=ratio,
        )

    def finish(self):
        self.kv.release(self.kv_pages)
        for pages in self.boundary_pages.values():
            self.boundary.release(pages)
