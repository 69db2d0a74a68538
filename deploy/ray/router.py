"""A request router of Ray Serve, which sends a request to the replica with its session or most of its prompt.

Ray has a ``ConsistentHashRouter`` in ``ray[serve]``, for sessions only, and a ``PrefixCacheAffinityRouter`` in
``ray.llm``, which cannot be imported with ``ray[serve]`` alone (it needs pyarrow and more) and which asks an actor for
each request. This one keeps its table in the ingress process, which the requests of all clients pass through.

Source: Ray Serve 2.60, ``ray.serve.request_router`` (alpha interface).
"""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deploy.ray.affinity import Affinity, PrefixTable


class PrefixRouter(RequestRouter):
    """Orders the replicas with a ``PrefixTable``. A replica without a free slot is passed over."""

    def initialize_state(self, slack: int = 8) -> None:
        """Create the table.

        Args:
            slack: as for ``PrefixTable``.
        """
        self._table = PrefixTable(slack)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the table's order, each a rank of its own."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # wait between the rounds while all are full
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        lengths = self.replica_queue_len_cache
        loads = {name: lengths.get(replica.replica_id) or 0 for name, replica in replicas.items()}
        return [[replicas[name]] for name in self._table.order(_affinity(pending_request), loads)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember which replica gets the prompt."""
        self._table.add(_affinity(pending_request), replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forget the replicas that have ended."""
        super().update_replicas(replicas)
        self._table.keep(replica.replica_id.unique_id for replica in replicas)


def _affinity(request: PendingRequest) -> Affinity:
    arguments: list[Any] = request.args
    found = getattr(arguments[0], "affinity", None) if arguments else None
    return found if isinstance(found, Affinity) else Affinity()
