"""``taskpool=3h``: the real command merges, evaluates what is in memory, and reports what the saved model gives too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from fusion_bench.taskpool import BaseTaskPool
from omegaconf import OmegaConf

from fusion_bench_ext.taskpool import ThreeHTaskPool
from mergekit_3h.cli import main
from mergekit_3h.errors import OptionError

from .conftest import pool_config
from .test_command import told
from .test_configs import CONFIGS, compose


def test_the_config_lists_every_argument() -> None:
    config = compose("taskpool=3h").taskpool
    hosts = {"_recursive_", "_usage_", "_version_"}
    assert set(config) - {"_target_"} == set(ThreeHTaskPool._config_mapping.values()) - hosts
    assert {path.stem for path in (CONFIGS / "taskpool").iterdir()} == {"3h"}
    given = {key: value for key, value in OmegaConf.to_container(config).items() if key != "_target_"}
    pool = ThreeHTaskPool(**given)
    assert isinstance(pool, BaseTaskPool)
    assert {key: value for key, value in pool.config.items() if key in given} == given


def test_what_is_missing_is_said_when_the_pool_is_made() -> None:
    with pytest.raises(OptionError, match="no shipped suite; did you mean '3h-small'"):
        ThreeHTaskPool(suite="3h-smalll")
    with pytest.raises(OptionError, match=r"taskpool.dtype: got 'int8'"):
        ThreeHTaskPool(suite="3h-small", dtype="int8")
    with pytest.raises(OptionError, match="name the suite"):
        ThreeHTaskPool()


@pytest.mark.slow
def test_the_report_of_a_merge_is_that_of_its_saved_model(family, fusion_bench, tmp_path: Path) -> None:
    models = family("llama", dtype=torch.bfloat16)
    merged, report = tmp_path / "merged", tmp_path / "report.json"
    overrides = ["method=rtsvm", f"method.model_save_path={merged}", "taskpool=3h", f"report_save_path={report}"]
    done = fusion_bench(pool_config(models), [*overrides, f"taskpool.output={tmp_path / 'results'}"])
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(report.read_text())
    assert all(isinstance(found[name], float) for name in ("helpful", "honest", "harmless", "average"))

    again = CliRunner().invoke(main, ["evaluate", str(merged), "--suite", "3h-small", "-o", str(tmp_path), "-q"])
    assert again.exit_code == 0, again.output
    saved, memory = (json.loads(path.read_text()) for path in (tmp_path / "merged.json", Path(found["items"])))
    assert {name: metric["items"] for name, metric in saved["metrics"].items()} == {
        name: metric["items"] for name, metric in memory["metrics"].items()
    }
    assert saved["average"] == memory["average"] and saved["average"]["score"] == found["average"]


def test_an_error_is_one_message_and_comes_before_the_merge(llama, fusion_bench, tmp_path: Path) -> None:
    absent = {**pool_config(llama), "models": {"_pretrained_": "/nowhere/base", "alpha": "/nowhere/alpha"}}
    done = fusion_bench(absent, ["method=rtsvm", "taskpool=3h", "taskpool.suite=nowhere.yml"])
    assert told(done).startswith("suite 'nowhere.yml': no such file, and no shipped suite")
