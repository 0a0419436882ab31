"""Steps of jwst on a part of a long exposure after the other: the same bit by bit (whole products: `test_shared`)."""

import contextlib
import functools
import logging

import numpy as np
import pytest

from calami.process import long, shared
from calami.process.long import in_parts

SHAPE = (5, 20, 16)  # groups, rows, columns
DNU, SATURATED, JUMP, CHARGELOSS = 1, 2, 4, 128


def ramp_model(nints, seed=1):
    """Ramps with jumps, many of them at the rims of bands, and with samples that are bad, full or have lost charge."""
    from stdatamodels.jwst.datamodels import RampModel

    rng, shape = np.random.default_rng(seed), (nints, *SHAPE)
    light = np.broadcast_to(rng.uniform(5, 400, SHAPE[1:]), shape)
    data = np.cumsum(rng.poisson(light), axis=1) + rng.normal(0, 8, shape)
    for _ in range(3 * nints):
        where = (rng.integers(nints), rng.integers(1, SHAPE[0]), rng.integers(SHAPE[1]), rng.integers(SHAPE[2]))
        data[where[0], where[1] :, where[2], where[3]] += rng.choice([60, 300, 3000])
    flags = np.zeros(shape, "u1")
    flags[:, :, 3, 4] |= DNU
    flags[:, 3:, 8, 2:6] |= SATURATED
    flags[:, 2:, 12:14] |= DNU  # all of some bands
    flags[rng.random(shape) < 0.001] |= DNU
    model = RampModel()
    model.data, model.groupdq, model.pixeldq = data.astype("f4"), flags, np.zeros(SHAPE[1:], "u4")
    model.meta.instrument.name, model.meta.exposure.nframes, model.meta.exposure.groupgap = "NIRISS", 1, 0
    model.meta.exposure.group_time = model.meta.exposure.frame_time = 0.07544
    return model


def maps():
    gain = np.full(SHAPE[1:], 1.6, "f4")
    gain[0, 0] = -1
    return gain, np.full(SHAPE[1:], 10.0, "f4")


def jumps(model, snowballs=False):
    from jwst.jump import jump_step
    from stcal.jump.jump_class import JumpData
    from stdatamodels.jwst.datamodels import dqflags

    data = JumpData(model, *maps(), dqflags.pixel)
    data.set_detection_settings(4.0, 6.0, 5.0, 200.0, 10.0, True)
    data.set_after_jump(1000.0, 1, 0, 0)
    data.set_snowball_info(snowballs, 5, 1, 2, False, 2.5, 4, 25)
    data.set_shower_info(False, 1.2, 90, 1, 2.6, 1.1, 10, 400)
    data.set_sigma_clipping_info(3, 100, True)
    data.max_cores = "1"
    return jump_step.detect_jumps_data(data)


def slopes(model):
    from stcal.ramp_fitting.ramp_fit import ramp_fit
    from stdatamodels.jwst.datamodels import dqflags

    gain, noise = maps()
    found = ramp_fit(model, False, noise, gain, "OLS_C", "optimal", "1", dqflags.pixel, suppress_one_group=True)
    return [(key, values) for part in found[:2] for key, values in part.items()]


def small(model, share=8):
    """Bytes of a part, so that there are several."""
    return model.data.nbytes // share


def said(caplog, what):
    return [record.getMessage() for record in caplog.records if what in record.getMessage()]


@pytest.mark.parametrize("nints", [12, 120])  # found by steps of a few; by the scatter of many
@pytest.mark.parametrize("kind", ["as they come", "a group is bad everywhere", "a group jumps everywhere", "snowballs"])
def test_jumps_are_those_that_are_found_at_once(tmp_path, caplog, nints, kind):
    models = [ramp_model(nints), ramp_model(nints)]
    for model in models:
        if kind == "a group is bad everywhere":
            model.groupdq[2, -1] |= DNU
        if kind == "a group jumps everywhere":
            model.data[3, 1:] += 50_000
            model.groupdq[3, :2] = model.groupdq[4, 0] & model.groupdq[5, 0]  # bad where all are
    whole = jumps(models[0], kind == "snowballs")
    with in_parts(tmp_path, small(models[1])), caplog.at_level(logging.INFO, "stpipe.calami"):
        parts = jumps(models[1], kind == "snowballs")
    assert all(np.array_equal(one, other) for one, other in zip(whole, parts, strict=True))
    assert (whole[0] & JUMP).any() and whole[2] > 20
    assert bool(said(caplog, "10 bands")) == (kind != "a group is bad everywhere")
    if kind == "a group jumps everywhere":  # with many integrations that is taken for no jump at all
        assert (whole[0][3, 1] & JUMP).any() == (nints < 100)


@pytest.mark.parametrize("lost", [0, CHARGELOSS | DNU])
def test_slopes_are_those_that_are_fitted_at_once(tmp_path, caplog, lost):
    models = [ramp_model(12), ramp_model(12)]
    for model in models:
        model.groupdq[:, 3:, 5:8] |= np.uint8(lost)
    whole = slopes(models[0])
    with in_parts(tmp_path, small(models[1])), caplog.at_level(logging.INFO, "stpipe.calami"):
        parts = slopes(models[1])
    for (name, one), (key, other) in zip(whole, parts, strict=True):
        assert name == key and one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    assert said(caplog, "10 bands") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("nints", [1, 12])
def test_only_ramps_that_are_others_than_last_time_are_fitted_again(nints, monkeypatch):
    # Several versions of an exposure, then another one: slopes are those of the stock fit, of all pixels or of some.
    from stcal.ramp_fitting import ols_fit

    monkeypatch.setattr(shared, "_FITTED", [])
    stock, sizes = ols_fit.ols_ramp_fit_single, []

    def counted(ramps, *more):
        sizes.append(ramps.data.shape[-2:])
        return stock(ramps, *more)

    whole = 320  # also where charge is lost for the first time, which makes another noise
    of = ((1, (), whole), (1, (5, 6, 7), whole), (1, (6, 12), 48), (1, (6, 12), 0), (1, (6,), 16), (2, (6,), whole))
    for seed, rows, pixels in of:
        models = [ramp_model(nints, seed) for _ in range(2)]
        for model in models:
            model.groupdq[:, 3:, list(rows)] |= np.uint8(CHARGELOSS | DNU)
            model.data[0, 0, 0, 0] = np.nan
        theirs, before = slopes(models[0]), len(sizes)
        with long.patched() as patch:
            patch(ols_fit, "ols_ramp_fit_single", functools.partial(shared._fit_others, counted))
            mine = slopes(models[1])
        for (name, one), (key, other) in zip(theirs, mine, strict=True):
            assert name == key and one.dtype == other.dtype
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
            other[...] = 0  # what is given is nobody else's
        assert sum(rows * columns for rows, columns in sizes[before:]) == pixels


def test_ramps_that_are_all_full_have_no_slopes(tmp_path):
    from stcal.ramp_fitting.ramp_fit import ramp_fit
    from stdatamodels.jwst.datamodels import dqflags

    model = ramp_model(12)
    model.groupdq |= np.uint8(SATURATED)
    with in_parts(tmp_path, small(model)):
        assert ramp_fit(model, False, *maps(), "OLS_C", "optimal", "1", dqflags.pixel) == (None, None, None)


def test_all_is_as_before_when_the_context_ends(tmp_path):
    from jwst.jump import jump_step

    before = jump_step.detect_jumps_data
    with contextlib.suppress(ZeroDivisionError), in_parts(tmp_path):
        assert jump_step.detect_jumps_data is not before
        1 / 0  # noqa: B018
    assert jump_step.detect_jumps_data is before
    home = {"a": 1}
    with long.patched() as patch:
        patch(home, "a", 2)
        patch(home, "b", 3)
        assert home == {"a": 2, "b": 3}
    assert home == {"a": 1}


def test_a_full_disc_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(long.os, "posix_fallocate", full, raising=False)
    model = ramp_model(12)
    with in_parts(tmp_path, small(model)), pytest.raises(OSError, match="No space left"):
        slopes(model)
