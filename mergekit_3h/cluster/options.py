"""Options of a Ray cluster: where it is, how many workers there are, and what each of them has and does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mergekit_3h.errors import OptionError
from mergekit_3h.options import parsed


class ClusterOptions(BaseModel):
    """How evaluations are spread over workers. A worker is a process with a model set of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = Field(
        None,
        min_length=1,
        description="Address of an existing Ray cluster; auto: the one that runs on this machine. Unset: the one that "
        "RAY_ADDRESS names, else a cluster on this machine alone, which is shut down at the end.",
    )
    workers: int | None = Field(
        None, ge=1, description="Workers at most. Unset: as many as the cluster has room for at the start."
    )
    share: Literal["auto", "candidates", "records"] = Field(
        "auto",
        description="candidates: each worker evaluates whole candidates. records: each evaluation is divided among the "
        "workers by batches of records. auto: candidates where at least as many are asked for at once as there are "
        "workers (cmaes, grid), else records (gradient). The result is the same.",
    )
    gpus_per_worker: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="GPUs of one worker: 0, a fraction of one (several workers share a GPU), or a whole number.",
    )
    cpus_per_worker: float = Field(
        1.0, ge=0.0, allow_inf_nan=False, description="CPU cores that Ray reserves for one worker."
    )
    memory_per_worker: float | None = Field(
        None,
        gt=0.0,
        allow_inf_nan=False,
        description="GB of memory that Ray reserves for one worker, so that a node gets no more workers than it holds. "
        "Unset: of a merge, what its plan needs; of a search, nothing.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="Threads of one worker's torch. Unset: as many as this process uses, because on a CPU the last "
        "bits of a result depend on it.",
    )
    attempts: int = Field(
        3, ge=1, description="How often a piece of work may be begun when workers die of it, before the search fails."
    )
    start_timeout: float = Field(
        600.0, gt=0.0, description="Seconds to wait for the first worker to be placed and to have loaded its models."
    )

    def reserved(self) -> dict[str, float]:
        """What Ray keeps for one worker, by its own names."""
        memory = {} if self.memory_per_worker is None else {"memory": int(self.memory_per_worker * 1e9)}
        return {"num_cpus": self.cpus_per_worker, "num_gpus": self.gpus_per_worker, **memory}

    @property
    def needs(self) -> str:
        """The same in words."""
        memory = "" if self.memory_per_worker is None else f" and {self.memory_per_worker:.3g} GB of memory"
        return f"{self.cpus_per_worker:g} CPU and {self.gpus_per_worker:g} GPU{memory}"


def parse_cluster_options(given: Mapping[str, Any]) -> ClusterOptions:
    """Options of the cluster from plain values; the error names the option, its value and what it may be."""
    options = parsed(ClusterOptions, given, "a cluster")
    require_placeable(options)
    return options


def require_placeable(options: ClusterOptions) -> None:
    """Raise unless Ray can reserve what one worker asks for."""
    gpus = options.gpus_per_worker
    if gpus > 1 and gpus != int(gpus):
        raise OptionError(
            f"option 'gpus_per_worker': got {gpus}; expected at most 1, or a whole number: a worker cannot have a part "
            "of a second GPU"
        )
