"""The page in a real browser: nothing is wider than the window, and text in charts is 12 px or more as it is shown.

Needs a Chromium on the machine; without one the test is skipped and says so. Windows narrower than about 500 px are
refused by headless Chromium, so the page stands in a frame of the wanted width.
"""

from __future__ import annotations

import base64
import html
import json
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from components.report.page import render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --hide-scrollbars --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=4000 --dump-dom"
)
MEASURE = """
addEventListener('load', () => {
  const page = document.querySelector('iframe').contentDocument, width = page.documentElement.clientWidth;
  const clips = one => getComputedStyle(one).overflowX !== 'visible';
  const inside = one => one.closest('.chart, .bar') || ['.scroll', 'pre'].some(name => one.closest(name) && clips(one.closest(name)));
  const wide = [...page.body.querySelectorAll('*')].filter(one => !inside(one) && one.getBoundingClientRect().right > width + 1);
  const charts = [...page.querySelectorAll('.chart')].map(one => one.getAttribute('font-size') * one.getBoundingClientRect().width / one.viewBox.baseVal.width);
  const found = {width, scroll: page.documentElement.scrollWidth, charts: charts.length, text: Math.min(...charts),
    wide: wide.slice(0, 5).map(one => one.tagName + '.' + one.className + ' in ' + one.parentElement.className)};
  document.body.innerHTML = '<output>' + btoa(unescape(encodeURIComponent(JSON.stringify(found)))) + '</output>';
});
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="NOT CHECKED: no chromium here, so the page's width was not measured")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(recipe, stages, tmp_path: Path, width: int):
    long = replace(
        stages[7],
        name="evaluate-" + "long" * 40,
        rows=[row.model_copy(update={"stage": "long" * 40}) for row in stages[7].rows],
    )
    stages = [*stages, long]
    found = measured(render(recipe, stages, datetime(2025, 3, 14, tzinfo=UTC)), width, tmp_path)
    assert found["width"] == width
    assert (found["wide"], found["scroll"]) == ([], width)
    assert found["charts"] > 10
    assert found["text"] >= 12


def measured(page: str, width: int, folder: Path) -> dict:
    assert BROWSER is not None
    frame = folder / "frame.html"
    shown = f'<iframe srcdoc="{html.escape(page)}" style="width:{width}px;height:900px;border:0"></iframe>'
    frame.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{shown}<script>{MEASURE}</script>", encoding="utf-8")
    command = [
        BROWSER,
        *FLAGS.split(),
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,900",
        frame.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert "<output>" in done.stdout, done.stderr[-2000:]
    return json.loads(base64.b64decode(done.stdout.split("<output>")[1].split("</output>")[0]))
