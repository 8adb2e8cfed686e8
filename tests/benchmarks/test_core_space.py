"""The core space beside the updates multiplied out, as the bench shows them."""

from __future__ import annotations

import re

from click.testing import CliRunner

from mergekit_3h.benchmarks.core_space import main, random_adapters


def test_both_routes_are_measured_and_agree() -> None:
    done = CliRunner().invoke(main, ["--shape", "96x64", "--rank", "4", "--method", "tsvm", "--method", "iso_c"])
    assert done.exit_code == 0, done.output
    assert "tsvm, 3 adapters of rank 4 on 96 x 64:" in done.output
    apart = [float(text) for text in re.findall(r"relative difference (\S+)", done.output)]
    assert len(apart) == 2 and max(apart) < 1e-6


def test_updates_have_the_size_that_is_said() -> None:
    given = random_adapters(96, 64, 4, 2)
    sizes = [float(update.rows(slice(0, 96)).square().mean().sqrt()) for update in given.updates.values()]
    assert all(0.7e-3 < size < 1.4e-3 for size in sizes)
