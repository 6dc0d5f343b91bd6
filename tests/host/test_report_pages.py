"""The pages in a headless Chromium: content, console, network, layout, labels, accessibility."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from host.errors import RunStatus, UserError
from host.report.charts import PLOT_TYPES
from host.report.page import plot_page, report_page
from host.report.sheets import KINDS
from host.store import Store
from quant.figures import Provenance

HERE = Path(__file__).parent


def _load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


rows = _load("report_rows", HERE / "report_rows.py")
chromium = _load("chromium", HERE.parents[1] / "tools" / "chromium.py")
PAGE_CHECKS = (HERE / "page_checks.js").read_text()
LABEL_CHECKS = (HERE / "label_checks.js").read_text()


@pytest.fixture(scope="module")
def browser():
    executable = chromium.find_chromium()
    if executable is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    with chromium.chromium(executable) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Every page there is, by name: the reports and each plot type at 3 and at 12 variants."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}

    def add(name: str, text: str) -> None:
        found[name] = folder / f"{name}.html"
        found[name].write_text(text, encoding="utf-8")

    add("report12", report_page(rows.session(12, awkward=True)))
    add("report3", report_page(rows.session(3, Provenance.MEASURED)))
    for count in (3, 12):  # the one plot that is not in the report
        add(f"heatmap{count}", plot_page(rows.session(count), "heatmap"))
    database = rows.database(folder / "lab.duckdb", sessions=2, count=3, slower=1.1)
    with Store.open(database, read_only=True) as store:
        for kind, sheet in KINDS.items():
            add(kind, sheet(store, None, None).html())
    return found


NAMES = ["report12", "report3", "heatmap3", "heatmap12", *KINDS]


@pytest.mark.parametrize("name", NAMES)
def test_page_in_chromium(browser, pages, name):
    page = browser.page()
    page.view(400, 2500, dark=True)
    page.open(pages[name])
    for width, dark in ((400, True), (1600, False)):
        page.view(width, 2500, dark=dark)  # the second time the page must adapt by itself
        page.draw_all()
        assert page.evaluate(LABEL_CHECKS) == []
        assert page.evaluate(PAGE_CHECKS) == []
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), width
        theme = page.evaluate("document.documentElement.dataset.theme")
        assert theme == ("dark" if dark else "light")
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    page.close()


def test_theme_button_redraws_the_plots(browser, pages):
    page = browser.page()
    page.view(1000)
    page.open(pages["report3"])
    page.draw_all()
    colour = "getComputedStyle(document.querySelector('#chart-pareto .xtick text')).fill"
    before = page.evaluate(colour)
    page.evaluate("document.getElementById('theme').click()")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(colour) != before
    page.close()


def test_printing_opens_and_draws_everything(browser, pages, tmp_path):
    page = browser.page()
    page.view(1000, dark=True)
    page.open(pages["report3"])
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    undrawn = "[...document.querySelectorAll('[data-chart]')].filter(n => !n.querySelector('svg'))"
    assert page.evaluate(f"{undrawn}.length") == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    page.close()


def test_keyboard_reaches_the_controls_in_order(browser, pages):
    page = browser.page()
    page.view(1000)
    page.open(pages["report12"])
    reached = []
    for _ in range(3):
        page.call(
            "Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9
        )
        reached.append(
            page.evaluate("document.activeElement.className || document.activeElement.id")
        )
    assert reached == ["skip", "theme", "table-scroll"]
    page.close()


BAD_PAGE = """<!doctype html><html><head><title></title></head><body><main><h1>A</h1><h3>skips</h3>
<p style="color:#999;background:#fff">faint</p><button></button><a href="#none">x</a>
<table><thead><tr><td>no header</td></tr></thead><tbody><tr><td>1</td></tr></tbody></table>
<div role="region" aria-label="one">1</div><div role="region" aria-label="one">2</div>
<button aria-label="close">Open</button>
<div style="width:50px;overflow-x:auto;white-space:nowrap">a long line that scrolls</div>
<i id="d"></i><i id="d"></i>
<div data-chart="c" style="width:80px;height:40px;overflow:hidden">
<svg width="300" height="40"><text x="0" y="20">one label</text><text x="50" y="22">another</text>
</svg></div>
</main><p>afterword</p></body></html>"""


def test_the_checks_find_what_is_wrong(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(BAD_PAGE)
    page = browser.page()
    page.view(400)
    page.open(bad)
    complaints = "\n".join(page.evaluate(PAGE_CHECKS))
    for rule in (
        "3.1.1",
        "2.4.2",
        "1.3.1 heading",
        "1.4.3 contrast",
        "4.1.2 no accessible name",
        "2.4.1",
        "1.3.1 table",
        "1.3.1 row",
        "2.1.1",
        "4.1.1 duplicate id",
        "2.5.3 label is not in the name",
        "1.3.1 two regions of one name",
        "1.3.1 content outside of the landmarks",
    ):
        assert rule in complaints, rule
    labels = "\n".join(page.evaluate(LABEL_CHECKS))
    assert 'c: "another" is cut off' in labels
    assert 'c: "one label" covers "another"' in labels
    page.close()


def visible_text(html: str) -> str:
    """The words of the page, without scripts and tags."""
    html = re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_report_says_verdict_first_and_everything_else():
    html = report_page(rows.session(12, awkward=True))
    text = visible_text(html)
    assert text.index("Ship int8") < text.index("Comparison") < text.index("Accuracy against")
    for words in (
        "Emulated device.",
        "published latencies",
        "no answer within 60 s",
        "it was charging",
        "not valid: throttled",
        "9f2c9f2c",
        "Profile rapid.",
        "emulated by the device model, not measured",
    ):
        assert words in text, words
    assert "<b>needs torch</b>" not in html  # messages are text, not markup
    assert "&lt;b&gt;needs torch&lt;/b&gt;" in html


def test_every_emulated_figure_of_the_table_carries_its_badge():
    html = report_page(rows.session(3))
    body = html[html.index("<tbody>") : html.index("</tbody>")]
    cells = re.findall(r'<td class="num">(.*?)</td>', body, flags=re.S)
    assert len(cells) == 3 * 7
    marked = [c for c in cells if "emulated by the device model" in c or "HTP emulator" in c]
    assert len(marked) == 3 * 6  # all but the size of the file
    assert all("unreal" in cell for cell in marked)
    measured = report_page(rows.session(3, Provenance.MEASURED))
    assert 'class="banner"' not in measured
    assert "badge unreal" not in measured


def test_an_invalid_run_shows_its_reason_and_its_figures():
    session = rows.session(3)
    run = session.runs[1]
    for figure in run.figures.values():
        if figure.metric == "latency_ms":
            run = rows.with_figure(run, replace(figure, valid=False, reason="too few blocks"))
    run = replace(run, status=RunStatus.INVALID, message="too few blocks")
    html = report_page(replace(session, runs=(session.runs[0], run, session.runs[2])))
    text = visible_text(html)
    assert "invalid too few blocks" in text
    assert "figures of 2" in text
    assert "1.000 ! not valid" in text
    assert "Ship fp16" in text
    assert 'data-chart="radar2"' not in html  # two variants are drawn


def test_one_predicted_figure_gets_a_banner():
    session = rows.session(3, Provenance.MEASURED)
    guess = replace(session.runs[1].figures["latency_ms"], provenance=Provenance.PREDICTED)
    runs = (session.runs[0], rows.with_figure(session.runs[1], guess), session.runs[2])
    text = visible_text(report_page(replace(session, runs=runs)))
    assert "Not every figure was measured." in text
    assert "MIXED: measured + predicted" in text


@pytest.mark.parametrize("kind", PLOT_TYPES)
def test_plot_page_has_banner_plot_and_table(kind):
    html = plot_page(rows.session(3), kind)
    slots = re.findall(r'data-chart="(\w+)"', html)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', html, re.S)[1])
    assert slots
    assert sorted(slots) == sorted(figures)
    text = visible_text(html)
    assert "Emulated device." in text
    assert text.index("Emulated device.") < text.index("Comparison")
    assert "int8[ calibration=mse]" in text


def test_page_of_12_variants_with_long_traces_is_small():
    html = report_page(rows.session(12, samples=60_000))
    assert len(html.encode()) < 8_000_000


def test_nothing_to_draw_is_said():
    bare = rows.session(3)
    bare = replace(bare, runs=tuple(replace(r, traces=(), phases=(), layers=()) for r in bare.runs))
    for kind in ("trace", "timeline", "layers"):
        with pytest.raises(UserError, match="Nothing to draw"):
            plot_page(bare, kind)
