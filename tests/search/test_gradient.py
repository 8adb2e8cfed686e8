"""The gradient by hooks against finite differences and against autograd through the merged weights."""

from __future__ import annotations

import pytest
import torch
from search.training import domain_records, safety_records, train
from tiny_models import tiny_model, tiny_tokenizer

from mergekit_3h.data.records import Record
from mergekit_3h.losses.records import in_memory
from mergekit_3h.search import Problem, SearchOptions, StateDictSource, solve
from mergekit_3h.spectral.registry import parse_options

RECORDS = [
    Record(set="safety", prompt="how to paint it blue", response="I cannot help with that."),
    Record(set="safety", prompt="how", response="no", weight=2.0),
    Record(set="domain", prompt="where is the fox", response="in the den, of course"),
]


def float64_problem(architecture: str, combine: str, granularity: int, **overrides: object) -> Problem:
    """Float64 throughout, so that oracles can be compared to many digits."""
    model = tiny_model(architecture, dtype=torch.float64, **overrides)
    sources = []
    for i, label in enumerate(("base", "one", "two", "three")):
        torch.manual_seed(50 + i)
        update = 0.0 if i == 0 else 0.02
        state = {n: t + update * torch.randn_like(t) for n, t in model.named_parameters()}
        sources.append(StateDictSource(label, {name: tensor.detach() for name, tensor in state.items()}))
    options = SearchOptions(combine=combine, layer_granularity=granularity, batch_size=2)
    method = None if combine == "task_arithmetic" else parse_options(combine, {})
    return Problem(sources[0], tuple(sources[1:]), model, tiny_tokenizer(), in_memory(RECORDS), options, method)


CASES = [
    ("llama", "task_arithmetic", 0),
    ("llama", "task_arithmetic", 1),
    ("llama-tied", "task_arithmetic", 1),
    ("llama", "tsvm", 1),
    ("gpt2", "rtsvm", 0),
    ("gpt2", "iso_c", 1),
]


@pytest.mark.parametrize(("architecture", "combine", "granularity"), CASES)
def test_matches_finite_differences(architecture: str, combine: str, granularity: int) -> None:
    problem = float64_problem(architecture, combine, granularity)
    runner = problem.local_runner()
    torch.manual_seed(0)
    at = (0.1 + 0.5 * torch.rand(problem.layout.dimension)).tolist()
    (measured,) = runner.evaluate([at], gradient=True)
    # Float64 throughout: rounding of 1e-15 over a step of 2e-4. But Llama's norms compute in float32 whatever the
    # dtype, which adds 1e-7 of noise to a loss of 6: 1e-3 of the step at worst, 2e-5 seen.
    step, tolerance = 1e-4, 1e-8 if architecture == "gpt2" else 1e-4
    for k in range(len(at)):
        ahead, behind = ([value + sign * step * (i == k) for i, value in enumerate(at)] for sign in (1, -1))
        plus, minus = runner.evaluate([ahead, behind], gradient=False)
        for name, gradient in measured.gradients.items():
            expected = (plus.losses[name] - minus.losses[name]) / (2 * step)
            assert gradient[k] == pytest.approx(expected, rel=1e-6, abs=tolerance)


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2"])
@pytest.mark.parametrize("granularity", [0, 1])
def test_matches_autograd_through_merged_weights(architecture: str, granularity: int) -> None:
    problem = float64_problem(architecture, "task_arithmetic", granularity)
    at = [0.05 * (i + 1) for i in range(problem.layout.dimension)]
    (measured,) = problem.local_runner().evaluate([at], gradient=True)
    for name in ("safety", "domain"):
        assert measured.gradients[name] == pytest.approx(oracle_gradient(problem, at, name), rel=1e-9, abs=1e-12)


def oracle_gradient(problem: Problem, at: list[float], set_name: str) -> list[float]:
    """One graph from the coefficients over the merged weights to the loss, a record at a time."""
    coefficients = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    merged = {}
    for name in problem.base.names():
        begin = problem.layout.offset(name)
        base = problem.base.tensor(name)
        merged[name] = base + sum(
            coefficients[begin + i] * (expert.tensor(name) - base) for i, expert in enumerate(problem.experts)
        )
    total, weights = torch.zeros(()), 0.0
    for answer in problem.answers[set_name]:
        ids = torch.tensor([answer.ids])
        logits = torch.func.functional_call(problem.model, merged, (ids,)).logits[0]
        answers = range(answer.prompt_length, len(answer.ids))
        losses = [-torch.log_softmax(logits[i - 1], dim=-1)[answer.ids[i]] for i in answers]
        total = total + answer.weight * torch.stack(losses).mean()
        weights += answer.weight
    (total / weights).backward()
    return coefficients.grad.tolist()


def test_no_weight_keeps_a_gradient_and_flags_are_restored() -> None:
    problem = float64_problem("llama", "task_arithmetic", 0)
    frozen = next(iter(problem.model.parameters()))
    frozen.requires_grad_(False)
    list(problem.local_runner().evaluate([[0.1, 0.2, 0.3]], gradient=True))
    assert all(parameter.grad is None for parameter in problem.model.parameters())
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in problem.model.parameters() if p is not frozen)


def test_at_most_one_weight_gradient_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gradient is freed before the next weight's is complete."""
    problem = float64_problem("llama", "task_arithmetic", 0)
    runner = problem.local_runner()
    alive: list[int] = []
    candidates = runner._candidates
    kind = type(next(iter(candidates._families.values())))
    original = kind.inner_products

    def watch(self, gradient):
        alive.append(sum(parameter.grad is not None for parameter in problem.model.parameters()))
        return original(self, gradient)

    monkeypatch.setattr(kind, "inner_products", watch)
    list(runner.evaluate([[0.1, 0.2, 0.3]], gradient=True))
    batches = len(runner._objective.batches)
    assert len(alive) == batches * len(list(problem.model.parameters()))
    assert max(alive) == 0


def test_needs_a_fifth_of_the_passes_of_cmaes(trained) -> None:
    """The acceptance figure: cmaes' best of 100 evaluations, with passes counted 3 for a gradient."""
    problem = trained.problem(solver="cmaes", max_evaluations=100)
    runner = problem.local_runner()
    cmaes = solve(runner, problem.layout, problem.options)
    options = trained.problem(solver="gradient", convergence=0.0).options
    gradient = solve(runner, problem.layout, options)
    assert cmaes.passes == 100
    assert passes_to_reach(gradient, cmaes.best.score) <= cmaes.passes / 5


def test_many_coefficients_are_practical() -> None:
    """One per expert, layer and the rest in a model of 15 layers: 32 coefficients."""
    problem = deep_problem(layers=15)
    assert problem.layout.dimension == 32
    runner = problem.local_runner()
    gradient = solve(runner, problem.layout, problem.options)
    cmaes = solve(runner, problem.layout, problem.options.model_copy(update={"solver": "cmaes"}))
    assert passes_to_reach(gradient, cmaes.best.score) <= cmaes.passes / 5
    assert gradient.best.score < cmaes.best.score


def deep_problem(layers: int) -> Problem:
    """An aligned expert and a domain expert, each a few steps of training away from a random deep base."""
    model = tiny_model("llama", num_hidden_layers=layers)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sources = [StateDictSource("base", start)]
    for label, course in {"aligned": safety_records(held_out=True), "domain": domain_records()}.items():
        model.load_state_dict(start)
        train(model, course, 12, 2e-3)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        sources.append(StateDictSource(label, state))
    records = in_memory([*safety_records()[:6], *domain_records()[:6]])
    options = SearchOptions(layer_granularity=1)
    return Problem(sources[0], tuple(sources[1:]), model, tiny_tokenizer(), records, options)


def passes_to_reach(solution, score: float) -> int:
    used = 0
    for point in solution.points:
        used += point.measured.passes
        if point.score <= score:
            return used
    raise AssertionError(f"{score} was not reached, only {solution.best.score}")
