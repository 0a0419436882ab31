"""Several versions of an exposure in one process: the same as by the stock pipeline, recorded as completely."""

import functools
import logging
import time

import numpy as np
import pytest
import toys
from astropy.io import fits

from calami.core import kept
from calami.instrument import niriss
from calami.process import long, pipeline, references, shared
from calami.process.audit import nondefault
from calami.process.engine import Engine, worker_pool
from calami.process.offline import call_by_name
from calami.process.pipeline import pipe_data
from calami.process.record import read_sidecar
from calami.process.shared import Task, difference, pipe_together

BOXES = {name: (np.linspace(*f.half_power, 20), np.ones(20)) for name, f in niriss.FILTERS.items()}
RATE = 3.6e6 * toys.nrm_psf("F480M", center=(40.0, 45.0)) + 10.0
CHAIN = ["detector1", "image2"]
PLAIN = {"charge_migration.skip": True}


def step(threshold):
    return {"charge_migration.skip": False, "charge_migration.signal_threshold": threshold}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """References of a toy detector, and a process in which jwst is imported once for all tests."""
    cache = references.offline_cache(tmp_path_factory.mktemp("crds") / "cache", toys.plain_detector(), passbands=BOXES)
    with worker_pool(1, cache) as pool:
        yield Engine(cache, executor=pool, progress=False)


@pytest.fixture(scope="module")
def uncal(tmp_path_factory):
    return toys.write_uncal(tmp_path_factory.mktemp("raw"), toys.plain_detector(), RATE, ngroups=6, nints=4)


@pytest.fixture(scope="module")
def versions(engine, uncal, tmp_path_factory):
    """Four versions: of the last, an earlier step differs, and nothing can be shared before it."""
    out = tmp_path_factory.mktemp("versions")
    kept = {"products": ("rate", "calints"), "keep": ("charge_migration",)}
    asked = {"low": step(2000.0), "jump": PLAIN | {"jump.rejection_threshold": 7}, "flat": {"flat_field.skip": True}}
    tasks = {"none": Task(uncal, PLAIN, out / "none", kept)}
    tasks |= {name: Task(uncal, PLAIN | own, out / name, {"products": "calints"}) for name, own in asked.items()}
    return {name: run.raise_failures() for name, run in pipe_together(tasks, CHAIN, engine=engine).items()}


def product(run):
    (path,) = [p for p in run.paths if p.name.endswith("_calints.fits")]
    return path


@pytest.fixture(scope="module")
def stock(versions, engine, uncal, tmp_path_factory):
    """The same by the stock pipeline."""
    out = tmp_path_factory.mktemp("stock")
    names = ("none", "low", "flat")
    return {n: pipe_data(uncal, CHAIN, versions[n].parameters, out / n, engine=engine).raise_failures() for n in names}


@pytest.mark.parametrize("name", ["none", "low", "flat"])
def test_versions_are_bit_by_bit_what_the_stock_pipeline_makes(versions, stock, name):
    assert difference(product(stock[name]), product(versions[name])) == ""


def test_what_is_made_ready_ahead_can_be_made():
    # Where it is done ahead a fault is passed over, and nobody would see it but by the time that is lost.
    with worker_pool() as pool:
        pool.submit(call_by_name, "calami.process.shared:_have_ready").result()


def test_versions_differ_from_each_other(versions):
    paths = [product(run) for run in versions.values()]
    assert all(difference(paths[0], other) for other in paths[1:])


@pytest.mark.parametrize("name", ["none", "low"])
def test_records_are_as_complete_as_those_of_the_stock_pipeline(versions, stock, name):
    mine, other = (read_sidecar(product(run)) for run in (versions[name], stock[name]))
    same = ["parameters", "crds_parameters", "references", "changed_from_spec", "changed_from_crds", "crds", "versions"]
    assert [key for key in same if mine[key] != other[key]] == []
    assert mine["references"].keys() >= {"gain", "readnoise", "flat", "linearity", "distortion"}
    assert (mine["stock"], other["stock"]) == (False, True)
    assert [s["name"] for s in mine["steps"]] == [s["name"] for s in other["steps"]][: len(mine["steps"])]
    tables = [list(map(tuple, nondefault(product(run)))) for run in (versions[name], stock[name])]
    assert tables[0] == tables[1]
    log = versions[name].outcomes[0].log.read_text(encoding="utf-8")
    assert "parameters are:" in log and "parameters found" in log


def test_the_log_in_the_file_is_that_of_its_own_version(versions):
    with fits.open(product(versions["low"])) as hdus:
        text = bytes(hdus["ASDF"].data["ASDF_METADATA"]).decode("utf-8", "replace")
    assert "signal_threshold: 2000.0" in text and "rejection_threshold: 4.0" in text


def test_what_is_the_same_is_done_once_and_what_nobody_asked_for_is_not_written(versions):
    first, low = versions["none"].outcomes[0], versions["low"].outcomes[0]
    status = {s["name"]: s["status"] for s in low.steps}
    early = ("dq_init", "saturation", "superbias", "refpix", "linearity")
    assert {status[name] for name in early} == {"taken"} and status["jump"] == status["charge_migration"] == "run"
    assert {s["status"] for s in first.steps if s["name"] in early} == {"run"}
    assert [p.name.split("_")[-1] for p in low.products] == ["calints.fits"]
    assert sorted(p.name.split("_")[-1] for p in first.products) == ["calints.fits", "rate.fits"]
    assert not list(versions["none"].outdir.parent.rglob(".calami-*"))


def test_another_threshold_begins_with_what_was_kept(versions, engine, uncal, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in versions["none"].outdir.rglob("*.fits")}
    options = {"products": "calints", "search": [versions["none"].outdir]}
    told = []
    tasks = {"x": Task(uncal, step(1500.0), tmp_path, options)}
    run = pipe_together(tasks, CHAIN, engine=engine, made=lambda *what: told.append(what))["x"]
    assert [(name, part.outcomes) for name, part in told] == [("x", run.outcomes)]
    taken = {s["name"] for s in run.raise_failures().outcomes[0].steps if s["status"] == "taken"}
    assert taken >= {"refpix", "linearity"} and read_sidecar(product(run))["stock"] is False
    assert before == {p: p.stat().st_mtime_ns for p in versions["none"].outdir.rglob("*.fits")}
    assert difference(product(versions["low"]), product(run))
    # What CRDS chose is remembered, and the record says it all the same.
    records = [read_sidecar(product(one)) for one in (versions["low"], run)]
    assert all(records[0][key] == records[1][key] for key in ("references", "crds_parameters", "crds"))
    assert "parameters found" in run.outcomes[0].log.read_text(encoding="utf-8")
    again = pipe_together({"x": Task(uncal, step(1500.0), tmp_path, options)}, CHAIN, engine=engine)["x"]
    assert again.outcomes[0].status == "already there" and again.steps_run == 0


def test_a_model_from_a_file_lacks_what_the_file_lacks(tmp_path):
    # Where nothing is checked, stdatamodels gives it as None, which the fit of ramps takes for an array.
    from stdatamodels.jwst.datamodels import RampModel

    RampModel((1, 3, 4, 4)).save(str(tmp_path / "ramp.fits"))
    fits.setval(tmp_path / "ramp.fits", "TARGNAME", value="A STAR")  # what ASDF says of the file no longer holds
    with shared._opened_once():
        found = RampModel(str(tmp_path / "ramp.fits"))
        assert not found.hasattr("average_dark_current") and not found._validate_on_assignment
    assert RampModel((1, 3, 4, 4))._validate_on_assignment


@pytest.mark.filterwarnings("ignore:All-NaN")
@pytest.mark.parametrize("shape", [(1, 1, 7), (2, 3, 4, 5), (40, 20, 3)])
@pytest.mark.parametrize("blank", [0.0, 0.4, 0.97])
def test_a_median_found_quickly_is_the_number_that_the_stock_one_is(shape, blank):
    rng = np.random.default_rng(len(shape))
    values = np.round(rng.normal(size=shape), 1).astype(np.float32)
    values[rng.random(shape) < blank] = np.nan
    values[..., 0] = np.nan
    into = np.empty(shape[2:], np.float32)
    stock = np.nanmedian(values, axis=(0, 1))
    same = functools.partial(np.testing.assert_array_equal, stock, strict=True)
    same(shared._median(values, (0, 1)))
    assert shared._median(values, axis=(0, 1), out=into) is into
    same(into)
    assert np.array_equal(shared._median(values, axis=-1), np.nanmedian(values, axis=-1), equal_nan=True)


@pytest.mark.parametrize("pixels", range(1, 16))
def test_an_area_is_passed_over_only_where_it_is_too_small(pixels):
    from stcal.jump import jump

    rng, ring = np.random.default_rng(pixels), np.zeros((14, 14), np.uint8)
    diamond = np.array([(-2, 0), (-1, 1), (0, 2), (1, 1), (2, 0), (1, -1), (0, -2), (-1, -1)])  # encloses most
    ring[tuple((diamond + 6).T)] = 4
    scattered = np.zeros((14, 14), np.uint8)
    scattered.flat[rng.choice(196, pixels, replace=False)] = 4
    for image in (ring, scattered, np.maximum(ring, scattered), 0 * ring):
        for threshold in (1, 5, 9, 13, 15, 40):
            found = shared._areas(jump._sk_filter_areas, image, threshold)
            assert repr(found) == repr(jump._sk_filter_areas(image, threshold))


@pytest.mark.parametrize(("shape", "few"), [((3, 6), 2), ((120, 3), 2), ((2, 12), 4)])
def test_jumps_are_looked_for_only_where_an_exposure_has_changed(shape, few, monkeypatch):
    # By the ways of stcal for many integrations, few differences and many; flags spread to neighbours and onwards.
    from stcal.jump import twopoint_difference
    from stcal.jump.twopoint_difference_class import TwoPointParams

    rng, looked = np.random.default_rng(shape[0]), []
    settings = TwoPointParams()
    values = {
        "normal_rej_thresh": 4.0, "two_diff_rej_thresh": 6.0, "three_diff_rej_thresh": 5.0, "fl_good": 0, "fl_sat": 2,
        "fl_jump": 4, "fl_dnu": 1, "flag_4_neighbors": True, "max_jump_to_flag_neighbors": 200.0, "only_use_ints": True,
        "min_jump_to_flag_neighbors": 10.0, "after_jump_flag_e1": 50.0, "after_jump_flag_n1": 1, "minimum_groups": 3,
        "after_jump_flag_e2": 900.0, "after_jump_flag_n2": 2, "minimum_sigclip_groups": 100, "min_diffs_single_pass": 8,
        "dt_group": np.array([1.0]), "n_reads_groupdiff": np.array([1.0]),
    }  # fmt: skip
    vars(settings).update(values)
    ramps = np.cumsum(rng.normal(100, 12, (*shape, 20, 30)), axis=1).astype(np.float32)
    where = rng.random(ramps.shape) < 0.01
    ramps += np.cumsum(np.where(where, rng.choice([80, 300, 3000], ramps.shape), 0), axis=1).astype(np.float32)
    plain = rng.choice(np.array([0, 1, 2], np.uint8), ramps.shape, p=[0.96, 0.02, 0.02])
    noise = rng.uniform(5, 9, (20, 30)).astype(np.float32)
    noise[2, 3] = 0
    cut, row, whole = plain.copy(), plain.copy(), plain.copy()
    cut[:, -1, 5:9, 5:9] |= 1  # as a threshold does it: these pixels are flagged together
    row[:, -1, 4] |= 1
    whole[0, -1] |= 1  # a group without a single good pixel
    stock = twopoint_difference.run_jump_detection

    def watched(data, *more):
        looked.append(data.shape[2:])
        return stock(data, *more)

    def found(flags):
        return twopoint_difference.find_crs(ramps.copy(), flags.copy(), noise, settings)

    for flags, size in ((plain, (1, 601)), (cut, (1, 17)), (row, (1, 47)), (row, (1, 1)), (whole, None), (plain, None)):
        monkeypatch.setattr(twopoint_difference, "run_jump_detection", stock)
        usual = found(flags)
        monkeypatch.setattr(
            twopoint_difference, "run_jump_detection", functools.partial(shared._look_at_others, watched)
        )
        looked.clear()
        ours = found(flags)
        assert [a.tobytes() for a in usual[:3]] == [a.tobytes() for a in ours[:3]] and usual[3] == ours[3] > 0
        assert size is None or looked == [size]


PLACES = [((1045, 1969), (80, 80), True), ((8, 1), (31, 24), True), ((1, 2001), (20, 47), False)]


@pytest.mark.parametrize(("first", "size", "odd_even"), PLACES)
def test_reference_pixels_in_a_window_are_those_of_the_whole_detector(first, size, odd_even):
    from jwst.refpix import reference_pixels
    from stdatamodels.jwst.datamodels import RampModel

    rng, results = np.random.default_rng(1), []
    data = rng.normal(100, 20, (1, 2, size[1], size[0])).astype(np.float32)
    flags = rng.choice(np.array([0, 2147483648, 2147483649], np.uint32), data.shape[2:], p=[0.9, 0.08, 0.02])
    settings = dict.fromkeys(("refpix_algorithm", "sirs_kernel_model", "sigreject", "gaussmooth", "halfwidth"))
    for window in (False, True):
        model = RampModel(data=data.copy(), pixeldq=flags.copy())
        model.meta.instrument.detector, model.meta.instrument.name = "NIS", "NIRISS"
        places = {"xstart": first[0], "ystart": first[1], "xsize": size[0], "ysize": size[1]}
        for key, value in (places | {"fastaxis": -2, "slowaxis": -1, "name": "SUB80"}).items():
            setattr(model.meta.subarray, key, value)
        one = reference_pixels.create_dataset(model, odd_even, False, 11, 1.0, False, settings, 3.0)
        stock = reference_pixels.NIRDataset.do_subarray_corrections
        (shared._in_window(stock) if window else stock)(one)
        results.append((model.data.tobytes(), one.pixeldq.tobytes(), one.bad_reference_pixels))
    assert results[0] == results[1] and results[0][0] != data.tobytes()


DIFFERENT = "shared.difference = lambda *paths: 'SCI differs'"
BROKEN = "def broken(*_): raise ValueError('no such thing')\nshared._run_plainly = broken"


@pytest.mark.parametrize(
    ("fault", "said"), [(DIFFERENT, "SCI differs"), pytest.param(BROKEN, "no such thing", marks=pytest.mark.slow)]
)
def test_the_stock_pipeline_does_all_where_anything_differs(engine, uncal, tmp_path, caplog, fault, said):
    restore = "import importlib; from calami.process import shared; importlib.reload(shared)"
    engine.executor.submit(exec, f"from calami.process import shared\n{fault}").result()
    try:
        with caplog.at_level(logging.WARNING):
            runs = pipe_together({"x": Task(uncal, PLAIN, tmp_path, {"products": "calints"})}, CHAIN, engine=engine)
    finally:
        engine.executor.submit(exec, restore).result()
    assert said in caplog.text and "stock pipeline" in caplog.text
    assert runs["x"].raise_failures().outcomes[0].status == "made"
    assert read_sidecar(product(runs["x"]))["stock"] is True


def bundle(folder, **changes):
    """A job as `_run_together` is given, with two versions, and what became of them."""
    parts = [
        {"work": "w", "outdir": str(folder / name), "base": "b", "keep": [], "products": ["calints"], "contents": {},
         "parameters": {"charge_migration.skip": name == "none", "charge_migration.signal_threshold": level}}
        for name, level in (("none", 1.0), ("step", changes.pop("level", 2.0)))
    ]  # fmt: skip
    parts[1] |= changes.pop("part", {})
    parts[1]["parameters"] |= changes.pop("parameters", {})
    steps = [{"name": "jump", "status": changes.pop("status", "run"), "seconds": time.time()}]
    return {"together": parts, "work": str(folder)}, [{"steps": steps, "error": None}] * 2


def test_a_comparison_is_made_once_and_anew_where_anything_but_a_number_is_another(tmp_path, monkeypatch):
    monkeypatch.setenv("CALAMI_CACHE", str(tmp_path / "cache"))
    made, said = [], []
    monkeypatch.setattr(shared, "_check", lambda *job: made.append(1) or "".join(said))

    def count(folder=tmp_path, **changes):
        shared._checked(*bundle(folder, **changes))
        return len(made)

    assert [count(), count(), count(level=3.0), count(tmp_path / "other")] == [1, 1, 1, 1]
    assert count(part={"base": "another file, context or jwst"}) == 2
    assert count(parameters={"jump.skip": True}) == 3
    assert count(part={"contents": {"charge_migration": ["another kernel"]}}) == 4
    assert count(status="taken") == 5
    assert count(part={"products": ["rate"]}) == 6
    with monkeypatch.context() as patch:
        patch.setattr(shared, "versions", lambda names: dict.fromkeys(names, "0"))
        assert count() == 7
    with monkeypatch.context() as patch:
        patch.setattr(kept, "_code", lambda: "another code")
        assert count() == 8
    # From a model that was kept on, another number is compared, too.
    assert [count(status="taken", level=3.0), count(status="taken", level=3.0)] == [9, 9]
    said.append("SCI differs")
    assert shared._checked(*bundle(tmp_path, status="new")) == "SCI differs"
    assert shared._checked(*bundle(tmp_path, status="new")) == "SCI differs" and len(made) == 11  # that is not kept


def test_stock_shares_nothing(engine, uncal, tmp_path):
    own = Engine(engine.cache, executor=engine.executor, progress=False, stock=True)
    run = pipe_together({"x": Task(uncal, PLAIN, tmp_path, {"products": "calints"})}, CHAIN, engine=own)["x"]
    assert read_sidecar(product(run.raise_failures()))["stock"] is True


def test_a_file_that_cannot_be_processed_fails_in_every_version_and_stops_no_other(engine, uncal, tmp_path):
    broken = tmp_path / uncal.name.replace("00001", "00002")
    with fits.open(uncal) as hdus:
        hdus[0].header["FILTER"] = "F999W"
        hdus[0].header["INSTRUME"] = "NOTHING"
        hdus.writeto(broken)
    tasks = {n: Task([broken, uncal], own, tmp_path / n, {"products": "calints"}) for n, own in
             {"none": PLAIN, "low": step(2000.0)}.items()}  # fmt: skip
    runs = pipe_together(tasks, CHAIN, engine=engine)
    assert [[o.status for o in run.outcomes] for run in runs.values()] == [["failed", "made"]] * 2
    assert len({error for run in runs.values() for error in run.failures.values()}) == 1


def test_products_of_parts_are_bit_by_bit_those_of_the_whole(stock, engine, uncal, tmp_path):
    # Of a ramp of 4 integrations: 3 of them at a time, or 10 rows.
    other = "from calami.process import long; long.PART_BYTES = {}".format
    engine.executor.submit(exec, other(3 * 80 * 80 * 4)).result()
    try:
        run = pipe_data(uncal, CHAIN, stock["low"].parameters, tmp_path, engine=engine).raise_failures()
    finally:
        engine.executor.submit(exec, other(long.PART_BYTES)).result()
    assert {p.name.split("_")[-1] for p in run.paths} == {"rate.fits", "rateints.fits", "cal.fits", "calints.fits"}
    assert [difference(stock["low"].outdir / path.name, path) for path in run.paths] == [""] * 4
    words = ("jumps were looked for in 8 bands", "ramps were fitted in 8 bands", "divided out of 3 integrations")
    logs = [one.logs[0].read_text(encoding="utf-8") for one in (stock["low"], run)]
    assert [[word in text for word in words] for text in logs] == [[False] * 3, [True] * 3]


def test_what_crds_chose_is_kept_as_long_as_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("CALAMI_CACHE", str(tmp_path / "cache"))
    flat = tmp_path / "flat.fits"
    flat.touch()
    job = {"base": "a file", "chain": ["calwebb_image2"], "cache": "references"}
    line = logging.LogRecord("stpipe.step", logging.INFO, "", 0, "PARS-%s parameters found", ("X",), None)
    memory = shared._Memory(frozenset())
    memory.configs["calwebb_image2"] = ({"steps": {"photom": {"skip": "True"}}}, [line])
    memory.references["flat_field", "flat"] = (("flat", "crds://flat.fits"), str(flat))
    memory.references["photom", "area"] = (("area", "N/A"), "N/A")

    def recalled(**other):
        found = shared._Memory(frozenset())
        shared._Chosen(job | other).recall(found)
        return found

    shared._Chosen(job).keep(memory)
    found = recalled()
    ((config, (said,)),) = found.configs.values()
    assert config == memory.configs["calwebb_image2"][0] and found.references == memory.references
    assert (said.name, said.levelno, said.getMessage()) == ("stpipe.step", logging.INFO, "PARS-X parameters found")
    assert not recalled(base="another file, or another context").references
    assert not recalled(cache="other references").references
    flat.unlink()
    assert not recalled().references and not recalled().configs


def test_an_exposure_is_made_when_all_of_its_segments_are(tmp_path):
    job = {"name": "a", "file": "a", "outdir": str(tmp_path)}
    jobs = {"1": (0, job | {"work": "1"}), "2": (1, job | {"work": "2"}), "3": (2, job | {"work": "3", "name": "b"})}
    told, plan = [], pipeline._Plan(("calwebb_image2",), {}, tmp_path, Engine(), 0.0, jobs=jobs)
    plan.made = lambda run: told.append([(o.name, o.products[0].name) for o in run.outcomes])
    for number, product in (("2", "late"), ("3", "other"), ("1", "early")):
        plan.settle(jobs[number][1], pipeline._NOTHING | {"products": [product]})
    assert told == [[("b", "other")], [("a", "early"), ("a", "late")]]


def test_no_task_is_no_run():
    assert pipe_together({}, CHAIN) == {}


def test_the_smallest_exposure_is_compared_and_the_largest_is_begun_early(tmp_path):
    jobs = []
    for name, size in (("a", 5), ("b", 2), ("c", 9)):
        (tmp_path / name).write_bytes(b"x" * size)
        jobs.append({"file": str(tmp_path / name), "outdir": str(tmp_path), "parameters": {"jump.skip": name == "a"}})

    def order(bundles):
        return [(b["file"][-1], b["check"], len(b["together"])) for b in bundles]

    assert order(shared._bundles(jobs)) == [("b", True, 1), ("c", False, 1), ("a", False, 1)]
    # Of those that are made in most versions.
    bundles = shared._bundles([*jobs, *(jobs[k] | {"parameters": {}} for k in (0, 2))])
    assert order(bundles) == [("a", True, 2), ("c", False, 2), ("b", False, 1)]
    assert bundles[0]["differ"] == ["jump"] and shared._bundles([]) == []


def write(path, data, **cards):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data, name="SCI")]).writeto(path)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header.update(cards)
    return path


def test_a_difference_is_a_bit_a_card_or_an_extension(tmp_path):
    data = np.array([[np.nan, 1.0]], "float32")
    one = write(tmp_path / "one.fits", data, DATE="today", S_JUMP="COMPLETE")
    assert difference(one, write(tmp_path / "same.fits", data, DATE="tomorrow", S_JUMP="COMPLETE")) == ""
    assert "S_JUMP" in difference(one, write(tmp_path / "card.fits", data, DATE="today", S_JUMP="SKIPPED"))
    assert (
        difference(one, write(tmp_path / "kind.fits", data.astype(float), S_JUMP="COMPLETE"))
        == "SCI of kind.fits differs"
    )
    bit = np.array([[np.nan, np.nextafter(np.float32(1), np.float32(2))]], "float32")
    assert difference(one, write(tmp_path / "bit.fits", bit, S_JUMP="COMPLETE")) == "SCI of bit.fits differs"
    fits.append(tmp_path / "same.fits", data)
    assert "extensions" in difference(one, tmp_path / "same.fits")


@pytest.mark.parametrize("flagged", [(), ((0, 0),), ((3, 4), (7, 7))])
def test_neighbours_of_flagged_pixels_are_those_of_stcal(flagged):
    from stcal.saturation.saturation import _adjacent_pixels

    plane = np.full((8, 8), 4, "uint32")
    for place in flagged:
        plane[place] |= 2
    known = plane.copy()
    _adjacent_pixels(known, 2, 1, inplace=True)
    again = shared._grown(_adjacent_pixels, plane.copy(), 2, 1)
    assert shared._grown(_adjacent_pixels, plane, 2, 1, inplace=True) is None
    np.testing.assert_array_equal(plane, known)
    np.testing.assert_array_equal(again, known)


@pytest.mark.parametrize("cards", [{}, {"EXP_TYPE": "NIS_IMAGE"}, {"EXP_TYPE": "NIS_AMI", "SSTR_NST": 2}])
def test_a_ramp_of_another_kind_is_left_to_jwst(tmp_path, cards):
    path = tmp_path / "x_uncal.fits"
    fits.PrimaryHDU(header=fits.Header(cards)).writeto(path)
    assert shared._ramp_type(lambda data: "stock", path) == "stock"
    assert shared._ramp_type(lambda data: "stock", tmp_path / "none.fits") == "stock"
    fits.setval(path, "EXP_TYPE", value="NIS_AMI")
    fits.setval(path, "SSTR_NST", value=0)
    assert shared._ramp_type(lambda data: "stock", str(path)).__name__ == "RampModel"
