"""Options of the method that ``svc`` changes, through both hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import mergekit_yaml
from hydra.utils import instantiate

from mergekit_3h.errors import OptionError

from .conftest import differing, merge_config, pool_of, stored
from .test_configs import compose


@pytest.mark.parametrize(
    ("method", "combine", "text", "mapping"),
    [
        ("svc", "dare_ties", "density=0.3, seed=5", "{density: 0.3, seed: 5}"),
        ("boost", "ties", "density=0.3", "{density: 0.3}"),
        ("svc", "tsvm", "energy=0.9, noise_floor=off", "{energy: 0.9, noise_floor: off}"),
    ],
)
def test_both_hosts_merge_to_the_same_bits(
    family: Any, absolute: Path, method: str, combine: str, text: str, mapping: str
) -> None:
    models = family("llama-tied", dtype=torch.bfloat16)
    options = {"combine": combine, "combine_options": text}
    mergekit_yaml(merge_config(models, method, options), absolute / "out")
    given = [f"method={method}", f"method.combine={combine}", f"method.combine_options={mapping}"]
    algorithm = instantiate(compose(*given, f"method.model_save_path={absolute / 'bench'}").method)
    algorithm.run(pool_of(models, lazy=True))
    assert differing(stored(absolute / "bench"), stored(absolute / "out")) == []
    assert differing(stored(absolute / "out"), stored(models.base))


def test_wrong_ones_are_said_before_anything_is_read(family: Any, absolute: Path) -> None:
    models = family("llama-tied", dtype=torch.bfloat16)
    for options, message in (
        ({"combine": "ties", "combine_options": "densty=0.3"}, "ties has no option 'densty'; did you mean 'density'?"),
        ({"combine_options": "density=0.3"}, "combine: task_arithmetic, the weighted sum, has no options"),
    ):
        done = mergekit_yaml(merge_config(models, "svc", options), absolute / "out", check=False)
        assert done.returncode and "svc cannot run this merge: parameters: option 'combine_options'" in done.stderr
        assert message in done.stderr
    with pytest.raises(Exception, match="ties has no option 'densty'") as caught:
        instantiate(compose("method=svc", "method.combine=ties", "method.combine_options={densty: 0.3}").method)
    assert isinstance(caught.value, OptionError) or "OptionError" in str(caught.value)
