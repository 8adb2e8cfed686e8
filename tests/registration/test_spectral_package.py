"""A spectral method that another package brings, as docs/architecture.md has it: every part of both hosts knows it."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hosts import merge_config, read_model
from registration.environments import Environment, build_wheel, write_project
from tiny_models import Family

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")

SEEN_BY_BOTH_HOSTS = """
    import json, sys
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from fusion_bench.modelpool import CausalLMPool
    from fusion_bench.utils.hydra_utils import get_default_config_path
    from mergekit.scripts.run_yaml import main

    config, models, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    main([config, out + "/by-mergekit"], standalone_mode=False)
    with initialize_config_dir(version_base=None, config_dir=get_default_config_path()):
        method = compose("fabric_model_fusion", overrides=["method=half_sum"]).method
    algorithm = instantiate(method, model_save_path=out + "/by-fusion-bench")
    algorithm.run(CausalLMPool(models, tokenizer=models["_pretrained_"], enable_lazy_loading=True))
"""

COMMANDS = """
    import json, sys
    from click.testing import CliRunner
    from mergekit_3h.cli import main

    done = [CliRunner().invoke(main, arguments) for arguments in json.loads(sys.argv[1])]
    print(json.dumps([(one.exit_code, f"{one.output}{one.exception!r}") for one in done]))
"""


@pytest.fixture(scope="module")
def half_sum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the package on the page."""
    source = next(text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class HalfSum" in text)
    point = re.search(r'half_sum = "my_package\.half_sum:HalfSum"', PAGE)
    assert point is not None
    folder = tmp_path_factory.mktemp("project") / "my_package"
    entry_points = {"half_sum": "my_package.half_sum:HalfSum"}
    return build_wheel(write_project(folder, "my_package", {"half_sum": source}, entry_points, "mergekit_3h.spectral"))


@pytest.fixture(scope="module")
def environment(
    beside_pytest: Environment, wheel: Path, half_sum: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    pytest.importorskip("fusion_bench")
    made = beside_pytest.copy(tmp_path_factory.mktemp("half-sum") / "environment")
    made.install(wheel, half_sum)
    return made


@pytest.mark.slow
def test_both_hosts_merge_with_it(environment: Environment, family: Callable[..., Family], absolute: Path) -> None:
    models = family("llama")
    config = absolute / "merge.yml"
    config.write_text(yaml.safe_dump(merge_config(models, "half_sum")))
    pool = {"_pretrained_": str(models.base), **{path.name: str(path) for path in models.experts}}
    environment.start("-c", textwrap.dedent(SEEN_BY_BOTH_HOSTS), str(config), json.dumps(pool), str(absolute))
    by_mergekit, by_fusion_bench = read_model(absolute / "by-mergekit"), read_model(absolute / "by-fusion-bench")
    base, *experts = map(read_model, (models.base, *models.experts))
    name = "model.layers.0.mlp.up_proj.weight"
    expected = base[name].double() + sum(expert[name].double() - base[name] for expert in experts) / 2
    assert torch.allclose(by_mergekit[name].double(), expected, atol=1e-6)  # float32 weights below 1
    assert all(torch.equal(by_mergekit[key], by_fusion_bench[key]) for key in by_mergekit)


@pytest.mark.slow
def test_the_commands_know_it(environment: Environment, family: Callable[..., Family], absolute: Path) -> None:
    config = absolute / "merge.yml"
    config.write_text(yaml.safe_dump(merge_config(family("llama"), "half_sum", parameters={"lamda": 2.0})))
    arguments = [
        ["check", str(config), "--no-estimate"],
        ["doctor"],
        ["bench", "--method", "half_sum", "--shape", "64x64", "--budget", "30s", "--peer", "none", "--threads", "1"],
        ["search", str(config), "-o", str(absolute / "found.yml"), "--data", "/nowhere.jsonl", "--solver", "gradient"],
        ["search", str(config), "-o", str(absolute / "found.yml"), "--data", "/nowhere.jsonl", "--solver", "grid"],
    ]
    done = environment.start("-c", textwrap.dedent(COMMANDS), json.dumps(arguments))
    checked, doctor, bench, by_gradient, by_grid = json.loads(done.stdout.splitlines()[-1])
    assert checked[0] == 1 and "half_sum has no option 'lamda'" in checked[1] and "did you mean 'lambda'?" in checked[1]
    assert doctor[1].count("half_sum: yes") == 2, doctor[1]
    assert bench[0] == 0 and re.search(r"^64x64 ", bench[1], re.MULTILINE), bench[1]
    assert "the gradient needs a combination that is linear" in by_gradient[1]
    assert "neither safety_merge nor half_sum" in by_grid[1] and "'lamda'" in by_grid[1]
