"""A real Chromium, asked how it lays a page out."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

_QUESTIONS = (
    "onload=()=>{const d=f.contentDocument,b=d.documentElement;"
    "const t=[...d.querySelectorAll('svg')].map(s=>[...s.querySelectorAll('text')]"
    ".map(e=>e.getBoundingClientRect()));"
    "let hits=0;for(const g of t)for(let i=0;i<g.length;i++)for(let j=i+1;j<g.length;j++)"
    "if(g[i].left<g[j].right-2&&g[j].left<g[i].right-2&&g[i].top<g[j].bottom-5&&g[j].top<g[i].bottom-5)hits++;"
    "const small=t.flat().filter(r=>r.height<9&&r.width<9).length;"
    "o.textContent=JSON.stringify([b.scrollWidth,b.clientWidth,hits,small,t.flat().length])}"
)


def browser_layout(page: Path, width: int) -> list[int]:
    """How wide the page and its window are, how many labels overlap, how many are tiny, how many there are."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    frame = page.with_name("frame.html")
    # A frame is as narrow as it is told to be; a headless window is not.
    frame.write_text(
        f'<iframe id="f" src="{page.name}" style="border:0;width:{width}px;height:900px"></iframe><pre id="o"></pre>'
        f"<script>{_QUESTIONS}</script>"
    )
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
    done = subprocess.run(
        [browser, *flags, "--dump-dom", "--window-size=1400,1000", "--virtual-time-budget=3000", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="o">\[(\d+),(\d+),(\d+),(\d+),(\d+)\]', done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    return [int(number) for number in found.groups()]
