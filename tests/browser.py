"""Chromium without a window, for tests that look at pages."""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cnnexp.report.render import POLICY

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FRAME = """<!doctype html><title>A page as wide as a phone</title>
<iframe id="page" src="{page}" style="width: {width}px; height: 800px; border: 0"></iframe>
<pre id="found"></pre>

<script>
document.getElementById("page").onload = async event => {{
  const frame = event.target.contentWindow;
  await new Promise(done => {{
    const script = frame.document.createElement("script");
    script.src = "axe.min.js"; script.onload = done; frame.document.head.append(script);
  }});
  const result = await frame.axe.run(frame.document);
  const overflow = frame.document.documentElement.scrollWidth - frame.innerWidth;
  const found = {{overflow, images: [...frame.document.images].map(i => i.naturalWidth),
    dark: frame.matchMedia('(prefers-color-scheme: dark)').matches, passes: result.passes.length,
    violations: result.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 120))])}};
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>
"""


def dom_of(address: str, *options: str) -> str:
    """The document after its scripts have run.

    Skips without a browser, except where CI promises one.
    """
    browser = next((match for name in BROWSERS if (match := shutil.which(name))), None)
    if browser is None and not os.environ.get("CI_HAS_BROWSER"):
        pytest.skip("no Chromium on this machine")
    assert browser is not None
    look = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000", *options]
    seen = subprocess.run([*look, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    return seen.stdout


def looked_at(page: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What a page of this width shows: pixels beyond it, widths of pictures, and what axe objects to."""
    import axe_core_python

    script = Path(axe_core_python.__file__).parent / "axe.min.js"
    (page.parent / "axe.min.js").write_bytes(script.read_bytes())
    text, copy = page.read_text(encoding="utf-8"), page.with_name("without_policy.html")
    copy.write_text(text.replace(POLICY, "img-src data:"))  # else the page lets no script look at it
    assert POLICY in text
    (page.parent / "frame.html").write_text(FRAME.format(page=copy.name, width=width))
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    with _served(page.parent) as address:
        dom = dom_of(f"{address}/frame.html", *options)
    match = re.search(r'<pre id="found">(\{.*\})</pre>', unescape(dom), re.DOTALL)
    assert match, dom[-500:]
    return json.loads(match[1])


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *_: Any) -> None:
        pass
