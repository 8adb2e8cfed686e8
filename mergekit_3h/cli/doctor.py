"""``mergekit-3h doctor``: one screen of what ``mergekit_3h.inspection.environment`` finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mergekit_3h.inspection.environment import Environment
    from mergekit_3h.inspection.hosts import Host

_MARKS = {
    True: click.style("ok  ", fg="green"),
    False: click.style("FAIL", fg="red"),
    None: click.style("-   ", dim=True),
}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
def command(as_json: bool) -> None:
    """Say which hosts and devices are here, whether each host sees the methods, and what to do about what is missing.

    Exit status: 0 when mergekit works with the methods of this package, 1 otherwise.
    """
    from mergekit_3h.inspection.environment import read_environment

    environment = read_environment()
    if as_json:
        click.echo(json.dumps({"works": environment.works, **environment.as_dict()}, indent=2))
    else:
        for line in _lines(environment):
            click.echo(line)
    raise SystemExit(0 if environment.works else 1)


def _lines(environment: Environment) -> Iterator[str]:
    yield f"{_MARKS[True]} mergekit-3h {environment.package}, Python {environment.python} ({environment.executable})"
    yield from _torch(environment.torch)
    yield from _host(environment.mergekit, optional=False)
    yield from _host(environment.fusion_bench, optional=True)
    hook = environment.hook
    switch = f", MERGEKIT_3H_AUTOLOAD={hook.switch}" if hook.switch is not None else ""
    files = ", ".join(hook.files) or "no start-up file"
    yield f"{_MARKS[hook.armed]} start-up hook {'armed' if hook.armed else 'not armed'}: {files}{switch}"
    yield from _advice(hook.advice)
    for device in environment.devices:
        memory = f", {device.memory_bytes / 2**30:.0f} GiB" if device.memory_bytes else ""
        yield f"{_MARKS[True]} {device.kind}: {device.name}{memory}; float64: {device.float64}"
    for extra in environment.extras:
        state = f"missing {', '.join(extra.missing)}" if extra.missing else "complete"
        yield f"{_MARKS[None if extra.missing else True]} extra {extra.name}: {state}"
        yield from _advice(extra.advice)
    yield f"mergekit {'works' if environment.works else 'does not work yet'} with the methods of mergekit-3h"


def _torch(facts: dict[str, Any]) -> Iterator[str]:
    if "problem" in facts:
        yield f"{_MARKS[False]} torch {facts['version'] or 'is not installed'}: {facts['problem']}"
        yield from _advice(facts["advice"])
        return
    build = f"CUDA {facts['cuda']}" if facts["cuda"] else "CPU build"
    yield f"{_MARKS[True]} torch {facts['version']}, {build}, {facts['threads']} threads"


def _host(host: Host, optional: bool) -> Iterator[str]:
    mark = _MARKS[None if optional and host.version is None else host.works]
    seen = ", ".join(f"{name}: {'yes' if found else 'NO'}" for name, found in host.sees.items())
    sees = f"; sees {seen}" if seen else ""
    problem = f"; {host.problem}" if host.problem else ""
    yield f"{mark} {host.name} {host.version or ''}(supported {host.required or 'any'}){sees}{problem}".replace(
        "(", " (", 1
    )
    yield from _advice(host.advice)


def _advice(text: str) -> Iterator[str]:
    if text:
        yield f"     -> {text}"
