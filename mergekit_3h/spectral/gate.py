"""The layer gate: models that a merge compares its experts with instead of merging them (``kernels/layer_gate.py``).

A config gives them a role, so that they come through the host's own loaders, with everything that a host does to its
models (tokenizers, adapters, dtypes).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.layer_gate import MixedTasks, alignment_cosines
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.method import SpectralMethod

DEFAULT_THRESHOLD = 0.35
"""Of the authors' code."""

OPTIONS = ("gate_threshold", "gate_share")

log = logging.getLogger(__name__)


def gate_products(experts: int) -> float:
    """For estimates of time: about how many products of a matrix with something of its shorter side telling the
    experts' cosines takes; of a tall matrix two an expert, of a wide one fewer."""
    return 2.0 * experts


@dataclass(frozen=True)
class Roles:
    """Which models are merged, and which ones the gate compares them with, by their labels."""

    experts: list[str]
    unaligned: str | None = None
    safety: str | None = None

    @property
    def others(self) -> list[str]:
        return [label for label in (self.unaligned, self.safety) if label is not None]

    def renamed(self, label: Callable[[str], str]) -> Roles:
        """The same under other labels."""
        unaligned, safety = (None if name is None else label(name) for name in (self.unaligned, self.safety))
        return Roles([label(name) for name in self.experts], unaligned, safety)

    def require_used(self, method: SpectralMethod) -> None:
        """Raise if the method's options are of a gate that there is none of."""
        if self.unaligned is None and method.gate_threshold is not None:
            raise OptionError(
                f"option 'gate_threshold': got {method.gate_threshold:g}, but no model has role: unaligned; give it to "
                "the model that the base was aligned from"
            )


def roles_of(given: Mapping[str, str]) -> Roles:
    """The roles that models have been given, all of them by their labels; raises unless they go together."""
    experts = [label for label, role in given.items() if role == "expert"]
    named = {role: [label for label, own in given.items() if own == role] for role in ("unaligned", "safety")}
    for role, labels in named.items():
        if len(labels) > 1:
            raise OptionError(f"option 'role': {' and '.join(labels)} are both {role}; expected one model")
    unaligned, safety = (labels[0] if labels else None for labels in named.values())
    if safety is not None and unaligned is None:
        raise OptionError(
            f"option 'role': {safety} is safety, but no model is unaligned; the layer gate needs the model that the "
            "base was aligned from, to tell which updates it replaces. To merge the safety model, leave its role out"
        )
    if not experts:
        raise OptionError(f"option 'role': no model is left to merge; {', '.join(given)} are all compared with")
    return Roles(experts, unaligned, safety)


@dataclass(frozen=True)
class GateReport:
    """What the gate found in one matrix; a value for each expert."""

    gate_cosines: list[float | None]
    """None for an update of nothing."""
    gated: list[bool]


@dataclass(frozen=True)
class Gate:
    """The tensors that a tensor's experts are compared with, or the matrices of these tensors."""

    labels: Sequence[str]
    """Of the experts."""
    unaligned: Tensor
    safety: Tensor | None

    def of_matrix(self, i: int) -> Gate:
        return replace(self, unaligned=self.unaligned[i], safety=None if self.safety is None else self.safety[i])

    def tasks(
        self, name: str, base: Tensor, experts: Sequence[Tensor], method: SpectralMethod
    ) -> tuple[TaskMatrices, GateReport]:
        """The experts' updates with those that are gated replaced; all are on the device that is computed on."""
        device, safety = base.device, None if self.safety is None else self.safety.to(base.device)
        threshold = DEFAULT_THRESHOLD if method.gate_threshold is None else method.gate_threshold
        cosines, is_aligned = alignment_cosines(self.unaligned.to(device), experts, base)
        gated = [i for i, cosine in enumerate(cosines) if cosine is not None and cosine < threshold]
        if gated:
            found = ", ".join(f"{self.labels[i]} ({cosines[i]:.3f})" for i in gated)
            change = f"{'smaller by' if safety is None else 'replaced by the safety model to'} {method.gate_share:.0%}"
            why = "" if is_aligned else "; alignment did not change it"
            log.info("%s: updates below the gate's threshold %g are %s: %s%s", name, threshold, change, found, why)
        report = GateReport(cosines, [i in gated for i in range(len(experts))])
        if not gated:
            return TaskMatrices(experts, base), report
        return MixedTasks(experts, base, gated, method.gate_share, safety), report
