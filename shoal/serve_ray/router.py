"""The request router of the gateways, on Ray's interface: the choice itself is in `choice.py`."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from .choice import PrefixChooser, unpacked


class PrefixRouter(RequestRouter):  # type: ignore[misc,unused-ignore]
    """Prefers the replica whose tree holds the longest prefix of a request's prompt, unless it is overloaded.

    Replicas report hashes of what their trees hold (`Replica.record_routing_stats`); a request comes with hashes of its
    prompt's prefixes (`prefix`, bytes). Calls without them go to the least loaded replica.
    """

    def initialize_state(self, **options: Any) -> None:
        """Takes `balance_abs` and `balance_rel`: see PrefixChooser."""
        self._chooser = PrefixChooser(**options)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray's call when replicas come, go or report."""
        self._chooser.update({str(one.replica_id): one.routing_stats.get("prefixes", b"") for one in replicas})
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in the order of preference, each a rank of its own: Ray takes the first that has room."""
        hashes: list[int] = []
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # when none has room
            hashes = unpacked(pending_request.kwargs.get("prefix", b""))
        by_name = {str(one.replica_id): one for one in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(one.replica_id) or 0 for name, one in by_name.items()}
        names = self._chooser.order(loads, hashes)
        if names:
            self._chooser.routed(names[0], hashes)  # now, for the requests that are chosen for meanwhile
        return [[by_name[name]] for name in names]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Ray's call when a replica has accepted a request: not always the one that was preferred."""
        self._chooser.routed(str(replica_id), unpacked(pending_request.kwargs.get("prefix", b"")))
