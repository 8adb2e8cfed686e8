"""Every option of the search: its one name, default, validation and description.

The command line, mergekit YAML, Hydra YAML and Python all read these declarations. All values are scalars,
because mergekit reads a list as a gradient over layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from mergekit_3h.errors import OptionError
from mergekit_3h.losses.options import LossOptions
from mergekit_3h.options import parsed
from mergekit_3h.search.combinations import held_combinations, is_held, is_linear, linear_combinations
from mergekit_3h.search.tuning import WEIGHT, searched_names, searched_options
from mergekit_3h.spectral import registry

SolverName = Literal["climb", "cocktail", "cmaes", "gradient", "grid"]


class SearchOptions(LossOptions):
    """How the coefficients are searched. ``n`` is the number of experts."""

    combine: str = Field(
        "task_arithmetic",
        min_length=1,
        description="The merge method whose weights are searched. task_arithmetic and tsvm, for example, are "
        "linear in the weights, so a candidate costs no decomposition; a method that is not is merged anew for each.",
    )
    over: str = Field(
        WEIGHT,
        description="What is searched: weight, a coefficient for each expert; options of the merge method that are "
        "numbers, such as lambda,power; or both. Options need the solver climb, which is taken if none is named.",
    )
    solver: SolverName = Field(
        "gradient",
        description="gradient: derivatives by back-propagation, linear combinations and iso_c. cmaes: CMA-ES, any "
        "combination. climb: hill climbing on a grid, any combination and options of its method. cocktail: "
        "LM-Cocktail's softmax over the models' own losses. grid: evenly spaced values.",
    )
    safety_weight: float = Field(
        1.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Factor on the loss over the safety set. 0 only measures that set.",
    )
    expert_weight: float = Field(
        0.3,
        ge=0.0,
        allow_inf_nan=False,
        description="Factor on the loss over the domain set (alpha in Eq. 5 of arXiv 2406.14563). 0 only measures it.",
    )
    overrefusal_weight: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Factor on the loss over harmless prompts with helpful replies. The paper has no such term; 0 "
        "only measures the set, where there is one.",
    )
    min_safety: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="If given, the search maximises the quality of the weighted other sets subject to this share of "
        "the best single model's safety quality, exp(-loss); safety_weight is then not used.",
    )
    layer_granularity: int = Field(
        0,
        ge=0,
        description="0: one coefficient per expert. k: one per expert and group of k consecutive layers, and one per "
        "expert for the tensors outside the layers (embeddings, final norm, head).",
    )
    component_blocks: int = Field(
        0,
        ge=0,
        description="k: instead of a coefficient for each expert, one for each of k blocks of its singular components, "
        "the largest first, with the weights that the config has; tsvm, rtsvm, and by the gradient iso_c. 0: no "
        "blocks.",
    )
    max_evaluations: int = Field(
        100,
        ge=1,
        description="Candidates evaluated at most. The single models and the base are measured besides.",
    )
    seed: int = Field(0, ge=0, description="Seed of the search; the same seed gives the same trace.")
    start: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Value of every coefficient of the first candidate, the uniform merge. Unset: 1 for spectral "
        "methods (their ordinary merge), 1/n otherwise.",
    )
    allow_negative: bool = Field(False, description="Let coefficients go down to -max_coefficient instead of 0.")
    max_coefficient: float = Field(2.0, gt=0.0, allow_inf_nan=False, description="Upper bound of every coefficient.")
    sigma0: float = Field(1.0 / 6.0, gt=0.0, allow_inf_nan=False, description="cmaes: initial step size, as in EvoMM.")
    population: int | None = Field(
        None,
        ge=2,
        description="cmaes: candidates per generation. Unset: 4 + floor(3 ln d) for d coefficients.",
    )
    temperature: float = Field(
        5.0,
        gt=0.0,
        allow_inf_nan=False,
        description="cocktail: divisor T of the losses in softmax(-L_i / T).",
    )
    include_base: bool = Field(False, description="cocktail: the base takes part in the softmax, with its own loss.")
    grid_points: int | None = Field(
        None,
        ge=2,
        description="grid: values per coefficient. Unset: as many as max_evaluations allows for the full product, or, "
        "where two are too many, one value shared by all coefficients.",
    )
    optimizer: Literal["bfgs", "adam"] = Field(
        "bfgs",
        description="gradient: bfgs, projected quasi-Newton, needs the fewest passes; adam, Adam with projection, is "
        "less sensitive to losses that low precision makes rough.",
    )
    learning_rate: float = Field(
        0.2,
        gt=0.0,
        allow_inf_nan=False,
        description="gradient: step size of adam, and the largest change of a coefficient in bfgs' first step.",
    )
    convergence: float = Field(
        1e-4,
        ge=0.0,
        lt=1.0,
        description="gradient: stop once a step is expected to lower the score by less than this share of it, or two "
        "steps in a row did. 0 goes on while anything improves.",
    )
    strict: bool = Field(
        False,
        description="Refuse a safety set that has records without a label whose response is no refusal, instead of "
        "warning of them.",
    )
    component_memory_gb: float | None = Field(
        None,
        ge=0.0,
        description="Device memory for the components of the merge; the others stay in host memory. Unset: half of "
        "what is free once the model is loaded.",
    )

    @property
    def finds_weights(self) -> bool:
        """Whether the experts' weights are among what is searched."""
        return WEIGHT in searched_names(self.over) and not self.component_blocks

    def set_weights(self) -> dict[str, float]:
        """Factor of each set's loss, whether there is such a set or not."""
        return {
            "safety": self.safety_weight,
            "domain": self.expert_weight,
            "overrefusal": self.overrefusal_weight,
        }

    def needed_sets(self) -> list[str]:
        """The sets that the score depends on."""
        weights = self.set_weights()
        if self.min_safety is not None:
            weights["safety"] = 1.0
        return [name for name, weight in weights.items() if weight]

    def start_value(self, experts: int) -> float:
        """The coefficient that the uniform merge gives every expert."""
        default = 1.0 if self.combine in registry.names() else 1.0 / experts
        return default if self.start is None else self.start

    def held_at(self, experts: int) -> list[float] | None:
        """The weights at which a combination that is not linear is held, if its candidates are made like that."""
        lower, upper = self.bounds()
        start = min(max(self.start_value(experts), lower), upper)
        return [start] * experts if is_held(self.combine, self.solver) else None

    def bounds(self) -> tuple[float, float]:
        return (-self.max_coefficient if self.allow_negative else 0.0, self.max_coefficient)


def parse_search_options(given: Mapping[str, Any]) -> SearchOptions:
    """Search options from plain values; the error names the option, its value and what it may be."""
    if "over" in given and "solver" not in given and searched_options(str(given["over"])):
        given = {**given, "solver": "climb"}
    options = parsed(SearchOptions, given, "the search")
    _require_consistent(options)
    return options


def _require_consistent(options: SearchOptions) -> None:
    if options.component_blocks:
        _require_blocks(options)
    if searched_options(options.over) and options.solver != "climb":
        raise OptionError(
            f"option 'solver': got {options.solver!r} with over {options.over!r}; options of a method are found by "
            "solver 'climb', by forward passes alone. Give that one, or search over the weights alone."
        )
    if options.solver == "gradient" and not (is_linear(options.combine) or is_held(options.combine, options.solver)):
        can = ", ".join([*linear_combinations(), *held_combinations()])
        raise OptionError(
            f"option 'solver': got 'gradient' with combine {options.combine!r}; the gradient needs a combination that "
            f"is linear in its weights, or is when a part of it is held: {can}. Take solver 'cmaes' for the others."
        )
    lower, upper = options.bounds()
    if options.start is not None and not lower <= options.start <= upper:
        raise OptionError(
            f"option 'start': got {options.start}; expected a value within the bounds {lower} to {upper} of the "
            "coefficients (max_coefficient, allow_negative)"
        )
    weights = options.set_weights()
    if options.min_safety is not None:
        weights.pop("safety")
    if not any(weights.values()):
        names = ", ".join(
            {"safety": "safety_weight", "domain": "expert_weight", "overrefusal": "overrefusal_weight"}[s]
            for s in weights
        )
        raise OptionError(f"options {names}: all are 0, so every candidate scores alike; give at least one a weight")


def _require_blocks(options: SearchOptions) -> None:
    can = [name for name, method in registry.methods().items() if method.has_blocks]
    if options.combine == "task_arithmetic":
        raise OptionError(
            f"option 'component_blocks': got {options.component_blocks} with combine 'task_arithmetic', which has no "
            "option to hold what is found; iso_c with power: 1 and noise_floor: off is the same sum of matrices, and "
            "has one"
        )
    if options.combine not in can:
        raise OptionError(
            f"option 'component_blocks': got {options.component_blocks} with combine {options.combine!r}; only "
            f"{', '.join(can)} merge singular components of every expert"
        )
    if not is_linear(options.combine) and options.solver != "gradient":
        raise OptionError(
            f"option 'solver': got {options.solver!r} with component_blocks of {options.combine}, which is linear in "
            "their coefficients only while a part of it is held; take solver 'gradient'"
        )
    if options.over != WEIGHT or options.solver == "cocktail":
        raise OptionError(
            f"option 'component_blocks': got {options.component_blocks} with over {options.over!r} and solver "
            f"{options.solver!r}; the blocks' coefficients are what is searched, by gradient, cmaes, climb or grid"
        )
