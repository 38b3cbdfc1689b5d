"""Where the queries and keys of a batch are, as the attention kernels read it: on the device only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Requests of one forward. Every tensor is int32, contiguous and on the device; nothing is read on the host.

    A launch depends on the shapes alone, so that a CUDA graph captured with one batch can be replayed with other
    contents of the same tensors. A request of key length 0 (padding) attends to nothing: its queries, if it has any,
    get zeros.

    Attributes:
        page_tables: [slots, bands, max_pages], page ids; entries past a request's keys may be anything.
        slots: [requests], row of page_tables of each request. Any valid row for padding.
        query_starts: [requests + 1], ascending from 0; request r's queries are rows query_starts[r] ..
            query_starts[r + 1] - 1 of q. Rows from query_starts[requests] on belong to no request: they are neither
            read nor written.
        key_lengths: [requests], keys are positions 0 .. key_lengths[r] - 1 of the request.
    """

    page_tables: Tensor
    slots: Tensor
    query_starts: Tensor
    key_lengths: Tensor

    def __post_init__(self) -> None:
        for name in ("page_tables", "slots", "query_starts", "key_lengths"):
            tensor = getattr(self, name)
            dimensions = 3 if name == "page_tables" else 1
            if tensor.dtype != torch.int32 or tensor.dim() != dimensions or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} is {tensor.dtype} {tuple(tensor.shape)}; it must be int32, contiguous, {dimensions}-d"
                )
        requests = self.slots.shape[0]
        if self.query_starts.shape[0] != requests + 1 or self.key_lengths.shape[0] != requests or not requests:
            raise ValueError(
                f"{requests} slots, {self.query_starts.shape[0]} query_starts, "
                f"{self.key_lengths.shape[0]} key_lengths; "
                "there must be n >= 1, n + 1 and n"
            )

    @property
    def num_requests(self) -> int:
        """Requests of the batch, with padding."""
        return self.slots.shape[0]

    @staticmethod
    def build(
        page_tables: Tensor, slots: Sequence[int], query_lengths: Sequence[int], key_lengths: Sequence[int]
    ) -> AttentionBatch:
        """From lists on the host and the page tables on the device: copies that are made once a forward."""
        starts = [0]
        for length in query_lengths:
            starts.append(starts[-1] + length)
        packed = torch.tensor([*slots, *starts, *key_lengths], dtype=torch.int32).to(page_tables.device)
        parts = packed.split([len(slots), len(starts), len(key_lengths)])
        return AttentionBatch(page_tables, *(part.clone() for part in parts))
