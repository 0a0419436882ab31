"""calami.fringes.batch: many exposures, in whatever processes."""

from importlib.util import find_spec

import numpy as np
import pytest
from toys import fringe_cube, fringe_images, rootname, write_exposure

from calami.core.problems import CalamiError
from calami.fringes.batch import fit_many
from calami.fringes.oifits import read_oifits


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three images of a star and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=80), 3, seed=1)
    paths = []
    for k in range(3):
        arrays = {"SCI": cube[k].astype("float32"), "ERR": error[k].astype("float32"), "DQ": dq[k]}
        paths.append(write_exposure(folder / f"{rootname(k + 1)}_cal.fits", arrays, {"ROLL_REF": 10.0}))
    paths.append(folder / f"{rootname(4)}_cal.fits")
    paths[-1].write_text("<html>maintenance</html>")
    return paths


def read(folder):
    return {path.name: read_oifits(path) for path in sorted(folder.iterdir())}


_DASK = pytest.param({"workers": 2, "dask": "local"}, id="dask")


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param({"workers": 2}, id="processes"), _DASK])
def test_it_is_the_same_wherever_it_is_done(how, files, tmp_path):
    if "dask" in how and find_spec("distributed") is None:
        pytest.skip("needs dask[distributed], the extra 'dask'")
    here = {one.name: one for one in fit_many(files, tmp_path / "here")}
    there = {one.name: one for one in fit_many(files, tmp_path / "there", **how)}
    assert {k: (v.summary, v.notes) for k, v in here.items()} == {k: (v.summary, v.notes) for k, v in there.items()}
    assert [isinstance(there[rootname(k)].problem, CalamiError) for k in (1, 2, 3, 4)] == [False] * 3 + [True]
    for one, other in zip(read(tmp_path / "here").values(), read(tmp_path / "there").values(), strict=True):
        assert np.array_equal(one.v2, other.v2) and np.array_equal(one.cp, other.cp)


def test_an_exposure_that_is_given_twice_is_fitted_once(files, tmp_path):
    copy = tmp_path / files[0].name
    copy.write_bytes(files[0].read_bytes())
    found = list(fit_many([files[0], copy], tmp_path / "oi"))
    assert sorted(one.problem is None for one in found) == [False, True]
    assert "the same exposure" in str(next(one.problem for one in found if one.problem))


def test_options_reach_the_fit(files, tmp_path):
    (one,) = fit_many(files[:1], tmp_path, holes=["B4", "C2", "B5", "C6"], spectral_type="K0V")
    assert one.problem is None and len(read_oifits(tmp_path / f"{one.name}_ami-oi.fits").v2) == 6
    (wrong,) = fit_many(files[:1], tmp_path, spectral_type="unheard")
    assert "unheard" in str(wrong.problem)
