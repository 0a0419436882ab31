"""Text from files in figures."""

import re
import shutil
import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable
from matplotlib.figure import Figure as Canvas

from calami.core.page import (
    Captioned,
    Figure,
    figure_files,
    figure_png,
    html_page,
    legend_outside,
    new_panels,
    safe_text,
)
from calami.core.tables import Readable, cell_text, one_digit, render


@pytest.mark.parametrize("word", [r"$\frac{1}{$", r"\$a\$", "$$", "a\nb", "$x$ and $", "\\", "HD 1"])
def test_text_is_drawn_as_it_is(word):
    text = Canvas().subplots().set_title(safe_text(word))
    shown, formula = text._preprocess_math(text.get_text())
    assert formula is False and shown == " ".join(word.split())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure_png([lambda ax: ax.plot([0, 1], label=safe_text(word)) and ax.legend()], 2, 2)


def test_panels_share_a_legend_that_hides_nothing(monkeypatch):
    drawn = []
    monkeypatch.setattr(Canvas, "savefig", lambda self, *args, **options: drawn.append(self))
    panels = [
        lambda ax, k=k: (ax.plot([0, 1], label="both"), ax.plot([1, 0], label=f"own {k}"), ax.legend()) for k in (1, 2)
    ]
    figure_png(panels, 6, 3, kind="pdf", legend=True)
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["both", "own 1", "own 2"]
    assert all(ax.get_legend() is None for ax in drawn[0].axes)
    drawn[0].draw_without_rendering()
    top = legend.get_window_extent().y1
    assert all(ax.get_window_extent().y0 >= top for ax in drawn[0].axes)


def test_a_legend_stands_beside_its_axes_where_there_is_room():
    for layout, beside in (("constrained", True), (None, False)):
        ax = Canvas(layout=layout).subplots()
        ax.plot([0, 1], label="a line")
        legend_outside(ax)
        ax.figure.draw_without_rendering()
        assert (ax.get_legend().get_window_extent().x0 > ax.get_window_extent().x1) == beside


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 3))])
def test_panels_wrap_after_three(count, shape):
    axes = new_panels(count, 3, 2)
    assert len(axes) == count == len(axes[0].figure.axes)
    assert tuple(axes[0].figure.get_size_inches()) == (3 * shape[1], 2 * shape[0])


def test_figures_and_tables_are_numbered_across_box_and_sections():
    from astropy.table import Table

    table, figure = Captioned(Table({"long_name": ["short", "x" * 40]}), "a table"), Figure(b"", "a figure")
    page = html_page("T", "s", [("One", [figure, table]), ("Two", [figure, Table({"a": [1]})])], [table])
    found = [(kind, int(n)) for kind, n in re.findall(r"<b>(Table|Figure) (\d)\.</b>", page)]
    assert found == [("Table", 1), ("Figure", 1), ("Table", 2), ("Figure", 2)]
    assert '<td class="n">short</td>' in page and f"<td>{'x' * 40}</td>" in page and "<th>long name</th>" in page


def test_a_page_of_wide_tables_keeps_to_the_screen_and_to_the_sheet(tmp_path):
    """In a browser: nothing beyond 1280 pixels, and nothing beyond A4."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright and Chromium")
    if shutil.which("chromium") is None:
        pytest.skip("needs playwright and Chromium")
    from astropy.table import Table

    wide = {f"a_heading_of_words_{k}": [f"-3.03 ± 0.{k}4", "+0.20 ± 0.01"] for k in range(9)}
    names = {"name": ["simg2va_f480m_12g_d1_1516o1a3103_" * 2, "b"]}
    png = figure_png([lambda ax: ax.plot([1, 2])], 13, 3)
    path = tmp_path / "page.html"
    blocks = [Captioned(Table(names | wide), "wide"), Figure(png, "a figure")]
    path.write_text(html_page("T " + "x" * 200, "s", [("One", blocks)], blocks), encoding="utf-8")
    with api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(path.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") == 1280
        tab.emulate_media(media="print")
        tab.set_viewport_size({"width": 688, "height": 1000})  # 182 mm, A4 less its margins, at 96 dots an inch
        ends = "[...document.querySelectorAll('table,img,h1')].map(e => e.getBoundingClientRect().right)"
        assert max(tab.evaluate(ends)) <= 689
        browser.close()


def test_headings_are_those_of_people():
    table = QTable({"chi2": [1.0], "onset_adu": [3.0] * u.adu, "n_exposures": [2], "V² - 1 [%]": ["a_b"]})
    text = html_page("t", "s", [("one", [table])])
    assert re.findall("<th>([^<]*)</th>", text) == ["χ²", "onset [ADU]", "exposures", "V² - 1 [%]"]
    assert "a_b" in text.replace("<wbr>", "")
    assert r"onset [ADU] & exposures" in render(table, "latex")
    assert "onset_adu" in render(table, "ecsv") and "onset_adu" in render(table)


def test_exponents_are_short():
    assert cell_text(1e8) == "1e8" and cell_text(-2.5e-7) == "-2.5e-7" and cell_text(1e12) == "1e12"
    assert one_digit(98_000_000.0) == "1e8"


def test_formats_of_a_figure_are_drawn_once():
    drawn = []
    files = figure_files([lambda ax: drawn.append(ax.plot([0, 1]))], 2, 2)
    assert len(drawn) == 1 and files["png"].startswith(b"\x89PNG") and files["pdf"].startswith(b"%PDF")
    assert files["png"] == figure_png([lambda ax: ax.plot([0, 1])], 2, 2)


def test_a_readable_table_has_no_more_digits_than_its_errors_allow():
    table = QTable({"edge": [6.360044e-7, np.nan] / u.electron, "edge_err": [1.657e-7, np.nan] / u.electron})
    table["level"], table["level_lo68"], table["level_hi68"] = ([v, v] for v in (9.7, 7.9, 13.3))
    table["chi2"], table["photons"], table["rate"] = [197.00551, 2.0], [1e8, 2e9], [37146.2656, 0.123456]
    seen = Readable(table)
    lines = repr(seen).splitlines()
    assert lines[0].split("  ")[0] == "edge [per e-]" and "level" in lines[0] and "lo68" not in lines[0]
    assert lines[2].split() == "(6.4 ± 1.7)e-7 9.7 (7.9 to 13.3) 197 1e8 37,146".split()
    assert lines[3].split() == "9.7 (7.9 to 13.3) 2 2e9 0.1235".split()
    assert "<th>χ²</th>" in seen._repr_html_() and table.colnames[0] == "edge" and len(table.colnames) == 8
