"""The Ray cluster of a search or a merge: one that exists, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from mergekit_3h.cluster.options import ClusterOptions
from mergekit_3h.errors import OptionError
from mergekit_3h.optional import optional

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 100_000_000
"""Of a cluster of our own: only coefficients and losses travel. Ray's own minimum is 75 MB."""
_CONNECTION_SECONDS = 10.0


def require_ray() -> Any:
    """The package, or an error that names the extra."""
    return optional("ray", "ray", "a Ray cluster")


def connect(scale: ClusterOptions) -> bool:
    """Connect this process to the cluster. True if the connection is ours and to be ended by us."""
    ray = require_ray()
    if ray.is_initialized():
        return False
    address = scale.address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a search does not report to anyone unless told to
        ray.init(address, include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
        _require_room(ray, scale)
        return True
    try:
        _require_listening(address)
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise OptionError(
            f"option 'address': no connection to a Ray cluster at {address!r} ({str(error).splitlines()[0]}). Start "
            "one with ray start --head, with the same versions of Python and Ray, or leave the option out."
        ) from None
    return True


def _require_listening(address: str) -> None:
    """Raise OSError unless someone answers there: Ray itself would wait for minutes, and write errors meanwhile."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECTION_SECONDS).close()


def room(scale: ClusterOptions) -> int:
    """How many workers the cluster's resources hold."""
    resources = require_ray().cluster_resources()
    reserved = scale.reserved()
    rooms = [
        int(resources.get(kind, 0.0) / reserved[name] + 1e-9)
        for kind, name in (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory"))
        if reserved.get(name)
    ]
    return min(rooms, default=1)


def _require_room(ray: Any, scale: ClusterOptions) -> None:
    if room(scale) < 1:
        resources = ray.cluster_resources()
        ray.shutdown()
        raise OptionError(
            f"a worker needs {scale.needs} (cpus_per_worker, gpus_per_worker, memory_per_worker); this machine has "
            f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU and "
            f"{resources.get('memory', 0) / 1e9:.3g} GB for workers. Ask for less, or name a cluster by address."
        )
