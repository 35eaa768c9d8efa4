"""The report in a real browser: it draws, sorts and fits a phone, with no network at all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.report.figures import drawing
from tests.analysis.synthetic_sweeps import SweepWriter, write_ladder

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    # Nothing may be fetched: every name resolves to nowhere.
    "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=4000",
]  # fmt: skip
# In a frame of a phone's width: what overflows, which figures have a size, what a click sorts.
PROBE = """
<iframe id="phone" style="width:390px;height:900px;border:0"></iframe>
<iframe id="desk" style="width:1200px;height:900px;border:0"></iframe>
<pre id="seen"></pre>
<script>
const text = TEXT;
function look(frame) {
  const page = frame.contentDocument, root = page.documentElement;
  const boxes = [...page.querySelectorAll("figure svg")].map((one) => one.getBoundingClientRect());
  const table = [...page.querySelectorAll("table")]
    .find((one) => one.tHead.textContent.includes("target loss"));
  const head = [...table.tHead.rows[0].cells].find((one) => one.textContent === "target loss");
  const column = () =>
    [...table.tBodies[0].rows].map((row) => row.cells[head.cellIndex].textContent);
  const before = column();
  head.querySelector("button").click();
  const up = column(), state = head.getAttribute("aria-sort");
  head.querySelector("button").click();
  page.defaultView.dispatchEvent(new Event("beforeprint"));
  const printed = [...page.querySelectorAll("figure details")].map((one) => one.open);
  page.defaultView.dispatchEvent(new Event("afterprint"));
  const after = [...page.querySelectorAll("figure details")].map((one) => one.open);
  return {
    printed, after,
    overflow: root.scrollWidth - root.clientWidth, figures: boxes.length,
    smallest: Math.min(...boxes.map((one) => Math.min(one.width, one.height))),
    before, up, state, down: column(),
    answer: page.querySelector(".lead").getBoundingClientRect().top,
    scripts: page.scripts.length, ground: getComputedStyle(page.body).backgroundColor,
  };
}
const seen = {};
for (const name of ["phone", "desk"]) {
  const frame = document.getElementById(name);
  frame.onload = () => {
    seen[name] = look(frame);
    document.getElementById("seen").textContent = JSON.stringify(seen);
  };
  frame.srcdoc = text;
}
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    if BROWSER is None:
        pytest.skip("no Chromium here: install the package chromium to run this test")
    folder = tmp_path_factory.mktemp("browser")
    write_ladder(SweepWriter(folder / "runs" / "trial"))
    with pytest.MonkeyPatch.context() as patch:
        kept = tuple(p for p in drawing.PICTURES if p.name in ("savings", "loss"))
        patch.setattr(drawing, "PICTURES", kept)
        out = folder / "out"
        assert (
            main(["report", "sweep=trial", f"runs={folder}/runs", f"out={out}", "resamples=40"])
            == 0
        )
    return (out / "report.html").read_text()


def seen(page: str, folder: Path, *flags: str) -> dict[str, dict[str, object]]:
    """What the probe saw in both frames."""
    probe = folder / "probe.html"
    quoted = json.dumps(page).replace("</", "<\\/")
    probe.write_text("<!doctype html>" + PROBE.replace("TEXT", quoted))
    command = [str(BROWSER), *FLAGS, *flags, f"--user-data-dir={folder}/profile", "--dump-dom"]
    done = subprocess.run(
        [*command, probe.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "ground"), [("1", "rgb(255, 255, 255)"), ("0", "rgb(22, 24, 28)")]
)
def test_the_report_draws_sorts_and_fits_a_phone(
    page: str, tmp_path: Path, scheme: str, ground: str
) -> None:
    found = seen(page, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
    assert found.keys() == {"phone", "desk"}
    for view in found.values():
        assert view["overflow"] == 0
        assert view["figures"] == 2
        assert view["smallest"] > 150
        assert view["state"] == "ascending"
        numbers = [float(told) for told in view["before"]]
        assert [float(told) for told in view["up"]] == sorted(numbers)
        assert [float(told) for told in view["down"]] == sorted(numbers, reverse=True)
        assert numbers != sorted(numbers)
        assert view["answer"] < 200
        assert view["ground"] == ground
        # What a figure rests on stands on paper, where nothing can be opened.
        assert view["printed"] == [True, True]
        assert view["after"] == [False, False]
