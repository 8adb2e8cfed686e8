"""``mergekit-3h``: one file a command, each imported only when it is called."""

from __future__ import annotations

import errno
from importlib import import_module

import click

from mergekit_3h.errors import ThreeHError

_COMMANDS = {
    "audit": "losses and refusals of every model on the data, before they are merged",
    "bench": "time, accuracy and memory of the kernels on this machine, beside other implementations",
    "check": "lint a mergekit config before hours are spent on it",
    "compare": "models side by side: tables, plots and a page from results and published tables",
    "data": "make, import, divide and look at the safety and domain data for safety-aware merging",
    "doctor": "which hosts and devices are there, and does each host see the methods",
    "evaluate": "helpfulness, honesty and harmlessness of models, by a suite of metrics",
    "inspect": "what the experts' updates look like before a merge, and what speaks against merging them",
    "merge": "check, merge, and show what the merge did: one command from models to proof",
    "search": "find merge weights by safety and domain data, and write a config that merges with them",
    "sweep": "many merges, tuned alike and compared: a table of methods",
}

_STORAGE_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


class _LazyGroup(click.Group):
    """Finds the command ``name`` as ``mergekit_3h.cli.<name>:command``; shows our errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return import_module(f"mergekit_3h.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ThreeHError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.filename is None and error.errno not in _STORAGE_IS_FULL:
                raise
            place = f"{error.filename}: " if error.filename is not None else ""
            raise click.ClickException(f"{place}{error.strerror}") from error


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mergekit-3h")
def main() -> None:
    """Merge aligned language models: TSVM, R-TSVM, safety-data-driven merging."""
