"""A Valkey Cluster of masters, each a child process, with the slots shared out among them.

    with ValkeyCluster.start() as cluster:
        client = redis.RedisCluster.from_url(cluster.url)

Replicas join it as `ValkeyServer`s with `cluster-enabled`, where a test wants a failover.
"""

import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final, Self

from .process import Closing, ServerError, free_port
from .valkey import ValkeyServer

SLOTS: Final = 16_384
_READY_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.02


class ValkeyCluster(Closing):
    """Masters that know one another; a killed one comes back with `nodes[i].restart()`."""

    def __init__(self, nodes: tuple[ValkeyServer, ...], stack: ExitStack) -> None:
        """Use `start`."""
        self.nodes = nodes
        self.url = nodes[0].tcp_url
        self._stack = stack

    @classmethod
    def start(cls, masters: int = 3, config: Mapping[str, str | int] | None = None) -> Self:
        """Returns once every master serves its share of the slots.

        Raises:
            ServerUnavailable: the package is missing; says what to install.
            ServerError: they did not come up, or did not agree in time.
        """
        with ExitStack() as stack:
            nodes = tuple(
                stack.enter_context(
                    ValkeyServer.start(config={**member_config(), **(config or {})})
                )
                for _ in range(masters)
            )
            for number, node in enumerate(nodes):
                first, last = (SLOTS * n // masters for n in (number, number + 1))
                order(node, f"CLUSTER SET-CONFIG-EPOCH {number + 1}")
                order(node, f"CLUSTER ADDSLOTSRANGE {first} {last - 1}")
                order(node, f"CLUSTER MEET 127.0.0.1 {_ports(nodes[0])}")
            await_agreement(nodes)
            return cls(nodes, stack.pop_all())

    def close(self) -> None:
        """Ends them all."""
        self._stack.close()


def member_config() -> Mapping[str, str | int]:
    """What a `ValkeyServer` needs to be a node of a Cluster."""
    return {"cluster-enabled": "yes", "cluster-port": free_port(), "cluster-node-timeout": 2000}


def order(node: ValkeyServer, command: str) -> str:
    """A node's answer to one command, as an operator types it.

    Raises:
        ServerError: it was refused.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5.0)
        connection.connect(node.url.removeprefix("unix://"))
        connection.sendall(f"{command}\r\n".encode())
        answer = connection.recv(65_536).decode()
    if answer.startswith("-"):
        raise ServerError(f"{command}: {answer[1:].strip()}")
    return answer


def _ports(node: ValkeyServer) -> str:
    port = node.tcp_url.rsplit(":", 1)[1]
    bus = order(node, "CONFIG GET cluster-port").split()[-1]
    return f"{port} {bus}"


def await_agreement(nodes: tuple[ValkeyServer, ...]) -> None:
    """Returns once every node sees all slots served, and every other.

    Raises:
        ServerError: that took too long; with the end of a node's log.
    """
    deadline = time.monotonic() + _READY_SECONDS
    wanted = ("cluster_state:ok", f"cluster_known_nodes:{len(nodes)}")
    while not all(all(part in order(n, "CLUSTER INFO") for part in wanted) for n in nodes):
        if time.monotonic() > deadline:
            raise ServerError(f"the Cluster did not agree; a node's log:\n{nodes[0].log_tail()}")
        time.sleep(_POLL_SECONDS)
