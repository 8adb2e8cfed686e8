"""Every method of the registry under the contract, with its defaults and with options that change the formula."""

from __future__ import annotations

from typing import Any

import pytest

from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.spectral.registry import methods, parse_options
from mergekit_3h.testing.spectral_contract import SpectralContract

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("rtsvm", {"preset": "paper"}),
    ("rtsvm", {"rank_budget": "per_task"}),
    ("tsvm", {"decorrelation": 0.1}),
    ("tsvm", {"decorrelation": 1.0, "decorrelation_sides": "output"}),
    ("rtsvm", {"decorrelation": 0.1, "decorrelation_sides": "input", "rank_budget": "per_task"}),
    ("rtsvm", {"preset": "paper", "decorrelation": 0.3}),
    ("tsvm", {"core": "dc"}),
    ("tsvm", {"core": "dc", "core_keep": 1.0}),
    ("tsvm", {"core": "score"}),
    ("rtsvm", {"core": "dc", "core_keep": 0.05}),
    ("star", {"eta": 1.0}),
    ("resmerge", {"head_rank": 3, "head_share": 0.5, "least_exponent": 0.0}),
    ("cart", {"rank_share": 0.5, "gain": 0.3}),
    ("boost", {"combine": "tsvm", "beta": 0.3}),
    ("boost", {"beta": 0.5}),
    ("iso_cts", {"common_fraction": 0.3, "noise_floor": "off"}),
    ("svc", {"combine": "tsvm"}),
    ("svc", {"combine": "swudi", "alpha": 0.5}),
    ("swudi", {"filter": "exponential", "start": "sum"}),
    ("swudi", {"rank": "gavish_donoho", "start": "zero"}),
    ("swudi", {"rank": "noise_edge"}),
    ("iso_c", {"power": 0.5, "noise_floor": "on"}),
    ("iso_c", {"power": 1.0}),
    ("iso_c", {"scale": "mean", "lambda": 1.5}),
]


class TestDefaults(SpectralContract):
    @pytest.fixture(params=list(methods()))
    def method(self, request: pytest.FixtureRequest) -> SpectralMethod:
        return parse_options(request.param, {})


class TestVariants(SpectralContract):
    @pytest.fixture(params=VARIANTS, ids=lambda variant: f"{variant[0]}-{'-'.join(map(str, variant[1].values()))}")
    def method(self, request: pytest.FixtureRequest) -> SpectralMethod:
        return parse_options(*request.param)

    test_the_memory_that_it_says_is_enough = None  # the defaults' bound; a process each takes long
