"""Shows FusionBench, and no other Hydra application, the configs of ``fusion_bench_ext``.

Every Hydra application of the environment imports this module, so it imports nothing but Hydra's plugin interface.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path, PurePath

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

PROVIDER = "mergekit-3h"
_COMMAND = "fusion_bench.scripts.cli"


class MergeKit3HSearchPath(SearchPathPlugin):
    """Appends our folder behind FusionBench's own, which wins where both have a config of one name."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        elements = search_path.get_path()
        if any(element.provider == PROVIDER for element in elements):
            return
        if not (_is_fusion_bench_command() or any(_is_fusion_bench_folder(element.path) for element in elements)):
            return
        package = find_spec("fusion_bench_ext")
        for folder in (package.submodule_search_locations or []) if package else []:
            search_path.append(PROVIDER, str(Path(folder) / "config"))
        if package:
            from fusion_bench_ext.method_configs import store_method_configs

            store_method_configs(PROVIDER)


def _is_fusion_bench_command() -> bool:
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    return _COMMAND in sys.modules or (main is not None and main.name == _COMMAND)


def _is_fusion_bench_folder(path: str | None) -> bool:
    return path is not None and PurePath(path.rstrip("/")).name == "fusion_bench_config"
