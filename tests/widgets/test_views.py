"""The views without a browser: controls set from Python, clicks as events."""

import asyncio
import threading
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
from toys import rootname, write_exposure, write_star

from calami import Dataset
from calami.core.problems import CalamiError
from calami.fringes.companions import add_companion
from calami.fringes.observables import add_noise, point_source
from calami.instrument import niriss
from calami.migration.answers import Answers
from calami.process.pipeline import Outcome, Run
from calami.widgets import blink, companion, explore, view
from calami.widgets.questions import AnswersView

pytest.importorskip("itables")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for activity, groups in ((1, 5), (2, 13)):
        path = folder / f"{rootname(1, activity)}_rate.fits"
        write_star(path, groups, seed=activity, edge=2e-6, bad=[(43, 48)])
    return Dataset(folder)


def click(axes, row, col):
    return SimpleNamespace(inaxes=axes, xdata=col, ydata=row)


def test_a_pair_in_turn(pair):
    seen = blink(pair[0], pair[1])
    assert seen.widget is seen.widget and "alt=" in seen.static()
    change = seen.pictures.of("difference")
    assert (
        change[40, 45] < -4
        and np.isnan(change[43, 48])
        and np.isfinite(seen.pictures.of("difference", clean=False)[43, 48])
    )
    assert abs(seen.pictures.of("model")[40, 45] / change[40, 45] - 1) < 0.2  # the fit explains the peak
    seen.what.value = "difference"
    assert seen.axes[0].get_title() == "deep over shallow, minus 1"
    seen._clicked(click(seen.axes[0], 43.2, 47.9))
    assert seen.pixel == (43, 48) and "not used" in seen.readout.value and seen.axes[1].get_title() == "row 43"
    seen._clicked(click(seen.axes[1], 1, 1))
    assert seen.pixel == (43, 48)  # a click on the profile chooses nothing
    seen.play.value = 1
    assert seen.what.value == "deep"
    assert blink((pair[0], pair[1])).pixel == (40, 45)


def test_shift_and_flux_taken_off_leave_migration(pair):
    pictures = blink(pair[0], pair[1]).pictures
    moved = pictures.of("difference", still=False) - pictures.of("difference")
    flux = 100 * pictures.pair.fit.flux.value
    assert np.nanmedian(moved) == pytest.approx(flux, abs=0.1)


def ramp(path, ints=6, groups=5):
    rng = np.random.default_rng(1)
    science = np.cumsum(rng.normal(500, 5, (ints, groups, 16, 16)), axis=1)
    science[..., 7:10, 7:10] += 1000 * np.arange(1, groups + 1)[:, None, None]
    science[..., 8, 8] += 4000 * np.arange(1, groups + 1)
    flags = np.zeros(science.shape, "uint8")
    flags[2, 3, 8, 8] = niriss.JUMP_DET
    arrays = {"SCI": science.astype("float32"), "PIXELDQ": np.zeros((16, 16), "uint32"), "GROUPDQ": flags}
    return write_exposure(path, arrays, NGROUPS=groups, NINTS=ints, EFFINTTM=groups * 0.07544)


def test_ramps_of_a_pixel(tmp_path):
    ramp(tmp_path / f"{rootname()}_ramp.fits")
    seen = Dataset(tmp_path)[0].explore(thresholds=(12_000,))
    assert seen.pixel == (8, 8) and seen.widget is not None and "base64" in seen.static()
    seen.chosen.value = 3
    labels = [t.get_text() for t in seen.axes[1].get_legend().get_texts()]
    assert labels == ["jump"] and "integration 3" in seen.axes[1].get_title()
    assert any("12,000 ADU = 19.3 ke-" in t.get_text() for t in seen.axes[1].texts)
    seen._clicked(click(seen.axes[0], 3.4, 5.6))
    assert seen.pixel == (3, 6) and seen.axes[1].get_title().startswith("row 3, column 6")
    seen.choose(99, -5)
    assert seen.pixel == (15, 0)
    flags = seen.ramps.flags(8, 8)
    assert flags.shape == (6, 5) and flags[2, 3] == niriss.JUMP_DET and flags.sum() == niriss.JUMP_DET
    steps = seen.ramps.steps(8, 8).mean(axis=0) * 0.07544
    assert steps == pytest.approx(np.full(4, 5500), abs=10)


def test_raw_exposures_have_no_flags(tmp_path):
    science = np.full((3, 4, 16, 16), 500, "uint16") + 100 * np.arange(4, dtype="uint16")[:, None, None]
    write_exposure(tmp_path / f"{rootname()}_uncal.fits", {"SCI": science}, NGROUPS=4, NINTS=3, EFFINTTM=4 * 0.07544)
    ramps = explore(Dataset(tmp_path)[0]).ramps
    assert ramps.flags(8, 8).shape == (3, 4) and not ramps.flags(8, 8).any()


@pytest.mark.parametrize("product", ["rate", "rateints"])
def test_products_without_groups(tmp_path, product):
    shape = (7, 16, 16) if product == "rateints" else (16, 16)
    science = np.full(shape, 10.0, "float32")
    science[..., 7:10, 7:10] = 300
    science[..., 8, 8] = 900
    arrays = {"SCI": science, "ERR": np.ones(shape, "float32"), "DQ": np.zeros(shape, "uint32")}
    write_exposure(tmp_path / f"{rootname()}_{product}.fits", arrays)
    seen = explore(Dataset(tmp_path)[0])
    assert seen.widget is not None and seen.ramps.has_samples == (product == "rateints")
    assert len(seen.ramps.values(8, 8)) == (7 if product == "rateints" else 1)
    assert not seen.axes[2].axison and "base64" in seen.static()


def test_a_folder_selection_and_names(pair, tmp_path):
    seen = pair.explore(tmp_path / "mine.txt")
    assert len(seen.selection) == 0 and seen.static().count("<img") == 2
    assert seen.widget is not None and len(seen.selection) == 0
    seen.give_name()
    assert "select one exposure" in seen.said.value and not (tmp_path / "mine.txt").exists()
    seen.table.selected_rows = [1]
    assert type(seen.selection) is Dataset and seen.selection.rootlist == [rootname(1, 2)]
    seen.typed.value = "deep"
    seen.give_name()
    assert (tmp_path / "mine.txt").read_text() == f"deep  {rootname(1, 2)}\n" and pair["deep"].rootname == rootname(
        1, 2
    )
    seen.table.selected_rows = [0]
    seen.typed.value = "deep"  # a second time
    seen.give_name()
    assert "second time" in seen.said.value and (tmp_path / "mine.txt").read_text().count("\n") == 1
    seen.typed.value = "no name"
    seen.give_name()
    assert (tmp_path / "mine.txt").read_text().count("\n") == 1


def test_nobody_waits_for_the_pictures_of_a_set(pair, tmp_path, monkeypatch):
    go_on = threading.Event()

    def slow(exposure):
        assert go_on.wait(60)
        return f'<img alt="{exposure.name}">'

    monkeypatch.setattr("calami.widgets.sets.thumbnail", slow)
    seen = pair.explore(tmp_path / "mine.txt")
    assert seen.widget is not None and len(seen.selection) == 0
    assert "<img" not in seen.draft() and all(name in seen.draft() for name in pair.names)
    assert not seen._later.done()
    go_on.set()
    assert [str(cell).startswith("<img") for cell in seen.table.df["picture"]] == [True, True]
    assert seen.place.children == (seen.table,) and seen.static().count("<img") == 2


def test_what_goes_wrong_behind_a_set_is_said(pair, tmp_path, monkeypatch):
    def broken(exposure):
        raise OSError("no <room>")

    monkeypatch.setattr("calami.widgets.sets.thumbnail", broken)
    seen = pair.explore(tmp_path / "mine.txt")
    assert seen.widget is not None
    with pytest.raises(OSError, match="no <room>"):
        _ = seen.table
    assert "no &lt;room&gt;" in seen.said.value and pair.names[0] in seen.draft()


def test_a_companion_on_sliders():
    data = add_noise(add_companion(point_source("F430M", 1e8), 150, 70, 0.01), np.random.default_rng(3))
    seen = explore(data, start=(150, 70, 5))
    assert seen.widget is not None and "base64" in seen.static()
    best = seen.companion.chi2(150, 70, 0.01)
    assert best < 2 * seen.companion.dof < seen.companion.chi2(250, 70, 0.01)
    assert f"χ² {best:.1f}" in seen.readout.value and "better" in seen.readout.value
    before = np.array(seen.lines[0].get_ydata())
    seen.separation.value = 250
    assert not np.allclose(seen.lines[0].get_ydata(), before)
    worse = seen.companion.chi2(250, 70, 0.01)
    assert worse > 10 * best and f"χ² {worse:.1f}" in seen.readout.value


@pytest.mark.parametrize("fault", ["", "no <disc>"])
def test_data_are_drawn_while_the_response_is_worked_out(monkeypatch, fault):
    go_on, chi2 = threading.Event(), companion.CompanionModel.chi2

    def slow(self, *place):
        assert go_on.wait(60)
        if fault:
            raise OSError(fault)
        return chi2(self, *place)

    async def kernel():
        seen = explore(point_source("F480M", 1e8), start=(150, 70, 5))
        assert seen.widget is not None and not seen.lines and "working out" in seen.readout.value
        go_on.set()
        while "working out" in seen.readout.value:
            await asyncio.sleep(0.02)
        return seen

    monkeypatch.setattr(companion.CompanionModel, "chi2", slow)
    seen = asyncio.run(asyncio.wait_for(kernel(), 60))
    if fault:
        assert "no &lt;disc&gt;" in seen.readout.value and not seen.lines
    else:
        assert "χ²" in seen.readout.value and len(seen.lines) == 2
        assert [len(ax.get_legend_handles_labels()[0]) for ax in seen.axes] == [2, 2]


def test_chi2_is_that_of_the_search():
    from calami.fringes.companions import search_companion

    data = add_noise(add_companion(point_source("F480M", 1e8), 150, 70, 0.01), np.random.default_rng(4))
    fit = search_companion(data)
    found = explore(data).companion.chi2(fit.separation, fit.position_angle, 10 ** (-0.4 * fit.dmag["F480M"]))
    assert found == pytest.approx(fit.chi2, rel=1e-3)


def test_a_run_and_its_logs(tmp_path):
    (tmp_path / "deep.log").write_text("all went well")
    fine = Outcome("deep", tmp_path / "deep_uncal.fits", "made", (), (), 2.5, tmp_path / "deep.log")
    bad = Outcome("shallow", tmp_path / "s_uncal.fits", "failed", (), (), 0.3, None, "s: <cut> short")
    seen = explore(Run(("jump",), {}, tmp_path, (fine, bad), 2.8))
    assert seen.widget is not None and "s: &lt;cut&gt; short" in seen.log.value  # failed ones first
    seen.chosen.value = 0
    assert "all went well" in seen.log.value and "<table" in seen.static()


def test_what_has_no_view_and_what_answers_nothing():
    with pytest.raises(CalamiError, match="no view of a int; give ExposureSet"):
        explore(3)
    with pytest.raises(CalamiError, match="hold no filter"):
        explore(Answers(None, {}, None, None, (), dict.fromkeys("abc", "no exposures"), 1e8))


def test_what_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ipympl.backend_nbagg", None)
    with pytest.raises(CalamiError, match=r'pip install "calami\[lab\]"'):
        view.need_lab()


def test_views_leave_the_figures_of_the_user_alone():
    import subprocess
    import sys

    code = "import matplotlib; matplotlib.use('svg'); from calami.widgets.view import live_figure; live_figure(2, 2)"
    code += "; import matplotlib.pyplot as plt; plt.figure(); print(matplotlib.get_backend())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "svg"


def test_outside_of_jupyter_the_static_form_is_shown():
    seen = explore(point_source("F480M", 1e8))
    with pytest.raises(NotImplementedError):
        seen._ipython_display_()
    assert seen._repr_html_() == seen.static()


def test_the_static_form_follows_when_the_cell_has_ended(monkeypatch):
    class Handle:
        def update(self, html):
            shown.append(html.data)

    def display(thing, display_id=False):
        shown.append(getattr(thing, "data", thing))
        return Handle()

    async def cell():
        seen._ipython_display_()
        assert shown[:2] == [view._hidden(""), seen.widget]  # the browser begins while the figure is drawn
        assert len(shown) == 3 and "base64" in shown[2]
        await asyncio.sleep(1.2)

    shown, seen = [], explore(point_source("F480M", 1e8))
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(view, "_is_live", lambda: True)
    asyncio.run(cell())
    assert shown[3:] == [view._hidden(seen.static())] != shown[2:3]
    del shown[:]
    seen._ipython_display_()  # without a loop: at once
    assert len(shown) == 4


def counted(monkeypatch):
    """A live figure with all that is drawn of it, and sent."""
    from matplotlib.figure import Figure

    drawn, sent, draw = [], [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, *a: drawn.append(self) or draw(self, *a))
    figure, (ax,) = view.live_figure(3, 2)
    monkeypatch.setattr(figure.canvas, "send", lambda content, buffers=None: sent.append((content, buffers)))
    return figure, ax, drawn, sent


def png_pixels(png):
    from io import BytesIO

    from PIL import Image

    return np.asarray(Image.open(BytesIO(png)).convert("RGBA"))


def test_a_canvas_draws_what_has_changed_and_nothing_else(monkeypatch):
    figure, ax, drawn, sent = counted(monkeypatch)
    (line,) = ax.plot([0, 1], [0, 1])
    figure.canvas.draw_idle()
    figure.canvas.draw()
    figure.canvas.manager.handle_json({"type": "refresh"})
    assert not drawn and not any(buffers or '"draw"' in str(what) for what, buffers in sent)
    first = figure.canvas.frame()
    del sent[:]
    for asked in ("refresh", "draw", "draw"):  # as a browser does when it has made its part
        figure.canvas.manager.handle_json({"type": asked})
    assert figure.canvas.frame() == first and len(drawn) == 1
    frames = [buffers[0] for _, buffers in sent if buffers]
    assert frames == [first, first]  # each time it asks it is answered
    line.set_ydata([1, 0])
    figure.canvas.manager.handle_json({"type": "draw"})
    change = png_pixels(sent[-1][1][0])
    whole = png_pixels(figure.canvas.frame())
    assert 0 < (change[..., 3] > 0).mean() < 0.2 and (whole[..., 3] == 255).all() and len(drawn) == 2
    shown = np.where(change[..., 3:] > 0, change, png_pixels(first))
    np.testing.assert_array_equal(shown, whole)
    figure.canvas.manager.handle_json({"type": "set_dpi_ratio", "dpi_ratio": 2})
    figure.canvas.manager.handle_json({"type": "draw"})
    assert png_pixels(sent[-1][1][0]).shape[:2] == tuple(2 * n for n in whole.shape[:2]) and len(drawn) == 3


@pytest.mark.parametrize("colour", ["white", "none"])
def test_a_whole_picture_is_what_was_drawn(colour):
    figure, (ax,) = view.live_figure(3, 2)
    figure.set_facecolor(colour)
    ax.plot([0, 1], [0, 1])
    pixels = png_pixels(figure.canvas.frame())
    np.testing.assert_array_equal(pixels, figure.canvas.buffer_rgba())
    assert pixels[0, 0, 3] == (255 if colour == "white" else 0)


def test_letters_are_hinted_as_always_on_other_threads():
    from matplotlib.backends import backend_agg

    usual, seen = backend_agg.get_hinting_flag(), []
    with view.unhinted():
        other = threading.Thread(target=lambda: seen.append(backend_agg.get_hinting_flag()))
        other.start()
        other.join()
        inside = backend_agg.get_hinting_flag()
        with view.unhinted():
            pass
        assert backend_agg.get_hinting_flag() == inside != usual
    assert backend_agg.get_hinting_flag() == usual == seen[0]


def test_two_who_draw_wait_for_each_other(monkeypatch):
    from matplotlib.figure import Figure

    figure, _, drawn, _ = counted(monkeypatch)
    inside, most, draw = [], [], Figure.draw

    def slow(self, *args):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.05)
        draw(self, *args)
        inside.pop()

    monkeypatch.setattr(Figure, "draw", slow)
    figure.canvas.begin()
    others = [threading.Thread(target=figure.canvas.draw) for _ in range(3)]
    for other in others:
        other.start()
    figure.canvas.frame()
    for other in others:
        other.join()
    assert most == [1] and len(drawn) == 1


def test_pictures_of_answers_are_drawn_before_they_are_asked_for():
    class Drawn(AnswersView):
        def __init__(self):
            self.panel = lru_cache(self._panel)

        def _panel(self, filter, what):
            seen.append((filter, what))
            return b""

    async def kernel():
        drawn._draw_ahead(list(pictures))
        assert not seen  # the cell ends first
        while len(seen) < len(pictures):
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.15)
        drawn.panel("F480M", "onset")

    seen, drawn, pictures = [], Drawn(), [("F430M", "onset"), ("F480M", "onset")]
    asyncio.run(asyncio.wait_for(kernel(), 10))
    assert seen == pictures
    drawn._draw_ahead(list(pictures))  # without a kernel: nothing
    assert seen == pictures
