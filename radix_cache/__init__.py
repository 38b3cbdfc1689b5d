"""The radix cache: a radix tree over prompt tokens whose nodes hold KV pages down to a valid depth."""
