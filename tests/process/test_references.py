"""The offline CRDS cache: what is in it, how it is built, and the stock jwst pipeline running from it."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import toys
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import examples

from calami.core.problems import CalamiError, FileProblem
from calami.instrument import mask, niriss
from calami.process import offline, references

BOXES = {name: (np.linspace(*f.half_power, 20), np.ones(20)) for name, f in niriss.FILTERS.items()}
RATE = 3.6e6 * toys.nrm_psf("F480M", center=(40.0, 45.0)) + 10.0


@pytest.fixture(scope="module")
def detector():
    return toys.plain_detector()


@pytest.fixture(scope="module")
def cache(tmp_path_factory, detector):
    return references.offline_cache(tmp_path_factory.mktemp("crds") / "cache", detector, passbands=BOXES)


def run_python(code, **kwargs):
    """Run code in a new interpreter that sees the same packages, with no CRDS settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CRDS_")}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, **kwargs)


# ---- What the references say


@given(a=st.floats(0, 2e-6), gain=st.floats(1.0, 2.5), full=st.floats(20_000, 75_000), others=st.floats(0, 2e-6))
@settings(max_examples=examples(60))
def test_linearity_gives_the_charge_back_up_to_saturation(a, gain, full, others):
    shape = np.ones((1, 1))
    maps = np.array([[a, others]]), gain * np.ones((1, 2)), full * np.ones((1, 2))
    coefficients = references.linearity_coefficients(*maps)[:, :, :1]
    held = np.linspace(full / 1000, full, 300)[:, None, None] * shape
    seen = ((held - a * held**2) / gain).astype("float32")
    linear = np.zeros_like(seen)
    for c in coefficients[::-1]:  # in 32 bits, as the pipeline does
        linear = linear * seen + c
    assert np.abs(linear * gain / held - 1).max() < 1e-5


def test_saturation_is_told_in_counts_as_read(cache, detector):
    threshold = fits.getdata(cache.find("saturation"))
    brightest = toys.raw_ramps(detector, np.full((80, 80), 4e6), 4, 1)[0, -1]
    below = toys.raw_ramps(detector, np.full((80, 80), 0.85 * 72_000 / 0.30176), 4, 1)[0, -1]
    assert (brightest >= threshold)[4:].all(), "a full pixel is found out, whatever its noise"
    assert (below < threshold)[4:].all()
    assert (threshold > detector.bias + 20_000).all()


def test_a_bias_near_the_end_of_the_converter_does_not_hide_saturation(tmp_path):
    high = toys.plain_detector(bias=np.full((80, 80), 30_000.0))
    made = references.offline_cache(tmp_path / "c", high, passbands=BOXES)
    threshold = fits.getdata(made.find("saturation"))
    assert threshold.max() == 65_535
    assert (toys.raw_ramps(high, np.full((80, 80), 4e6), 4, 1)[0, -1, 4:] >= threshold[4:]).all()


def test_noise_and_dark_are_told_as_the_steps_want_them(cache, detector):
    of_difference = fits.getdata(cache.find("readnoise")) * detector.gain
    np.testing.assert_allclose(of_difference, np.sqrt(2) * detector.read_noise, rtol=1e-6)
    dark = fits.getdata(cache.find("dark"), "SCI")
    assert dark.shape == (120, 80, 80)
    np.testing.assert_allclose(dark[9] * detector.gain, detector.dark * 10 * 0.07544, rtol=1e-5)


def test_mask_keeps_every_flag_and_adds_the_reference_rows(tmp_path):
    flags = np.zeros((80, 80), "uint32")
    flags[10, 10], flags[11, 11] = 1 | 2**11, 2**10  # hot; dead, which alone does not say DO_NOT_USE
    made = references.offline_cache(tmp_path / "c", toys.plain_detector(flags=flags), passbands=BOXES)
    from stdatamodels.jwst.datamodels import MaskModel

    with MaskModel(made.find("mask")) as model:
        read = np.array(model.dq)
    assert (read[:4] == niriss.REFERENCE_PIXEL).all()
    assert (read[10, 10], read[11, 11], read[4:].astype(bool).sum()) == (2049, 1024, 2)


def test_every_reference_says_that_it_is_simulated(cache):
    import asdf

    for reference in cache.references:
        path = cache.reference_path(reference)
        assert "calami" in path.name
        if path.suffix == ".fits":
            header = fits.getheader(path)
            assert header["AUTHOR"] == "calami simulation" and header["PEDIGREE"] == "SIMULATION"
            assert header["DESCRIP"].startswith("calami simulation") and "calami" in str(header["HISTORY"])
            assert header["USEAFTER"] == header["DATE"] == "2015-01-01T00:00:00"
        else:
            with asdf.open(path) as tree:
                assert tree["meta"]["author"] == "calami simulation" and "calami" in tree["meta"]["history"]


def test_parameters_are_those_of_the_executed_notebook(shared_data):
    (log,) = (shared_data / "headers").glob("ami_1093_executed_outputs*.txt")
    text = log.read_text()
    used = {}
    for name, pars in re.findall(r"^    (\w+):\n((?:      \w+: .*\n)+)", text, re.M):
        used.setdefault(name, {}).update(re.findall(r"^      (\w+): (.*?)\s*$", pars, re.M))
    assert float(used["charge_migration"]["signal_threshold"]) == references.SIGNAL_THRESHOLDS["F480M"]
    for key, value in references.PARAMETERS["pars-jumpstep"].items():
        told = used["jump"][key]
        assert told == str(value) if isinstance(value, bool) else float(told) == value
    for reftype in ("pars-detector1pipeline", "pars-image2pipeline"):
        for step, pars in references.PARAMETERS[reftype].items():
            assert {k: str(v) for k, v in pars.items()}.items() <= used[step].items()


def test_distortion_has_the_scale_and_angle_of_the_aperture():
    where = references.detector_to_v2v3()
    x, y = 1044 + 45.0, 40.0
    centre, right, up = (np.array(where(*p)) for p in ((x, y), (x + 1, y), (x, y + 1)))
    np.testing.assert_allclose(centre, references.AIM_V2V3)
    scales = [1000 * np.hypot(*(p - centre)) for p in (right, up)]
    np.testing.assert_allclose(scales, niriss.PIXEL_SCALE_MAS)
    assert np.degrees(np.arctan2(*(up - centre))) == pytest.approx(0.56126717)
    assert (right - centre)[0] < 0, "VPARITY is -1"


@given(width=st.floats(0.3, 1.2), oversample=st.sampled_from([2, 4]))
@settings(max_examples=15)
def test_holes_have_the_area_of_hexagons(width, oversample):
    image = mask.pupil_image(width, pixels=512, oversample=oversample)
    area = image.sum() * (mask.PUPIL_DIAMETERS[1] / 512) ** 2
    assert area == pytest.approx(7 * np.sqrt(3) / 2 * width**2, rel=5e-3)
    assert image.min() == 0 and image.max() == 1


def test_nrm_has_the_keywords_of_the_real_one(cache, shared_data):
    ours, theirs = (fits.getheader(p) for p in (cache.find("nrm"), shared_data / "reference" / "MASK_NRM.fits.gz"))
    for key in [f"NRM_{axis}_A{n}" for axis in "XY" for n in range(1, 8)] + ["DIAM", "PUPL_CRC"]:
        assert ours[key] == pytest.approx(theirs[key], abs=1e-6)
    assert ours["F2F"] == niriss.HOLE_FLAT_TO_FLAT


# ---- Building


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_building_again_gives_the_same_bytes(cache, detector, tmp_path):
    again = references.offline_cache(tmp_path / "again", detector, passbands=BOXES)
    assert again.context == cache.context and again.references == cache.references
    assert contents(again.path) == contents(cache.path)


def test_building_in_place_is_a_no_op(cache, detector):
    before = {p: p.stat().st_mtime_ns for p in cache.path.rglob("*")}
    assert references.offline_cache(str(cache.path), detector, passbands=BOXES) == cache
    assert {p: p.stat().st_mtime_ns for p in cache.path.rglob("*")} == before
    assert [p.name for p in cache.path.parent.iterdir()] == ["cache"]


def fingerprint(detector, passbands=BOXES, thresholds=None, parameters=None, hole=0.8):
    return references._recipe(detector, passbands, thresholds, parameters, hole).fingerprint


@pytest.mark.parametrize("name", ["gain", "bias", "nonlinearity", "saturation", "flat", "read_noise", "dark", "flags"])
def test_one_pixel_of_any_map_changes_the_fingerprint(detector, name):
    changed = getattr(detector, name).copy()
    changed[30, 30] = changed[30, 30] + 2 if name == "flags" else changed[30, 30] * 1.001
    assert fingerprint(toys.plain_detector(**{name: changed})) != fingerprint(detector)


def test_any_option_changes_the_fingerprint(detector):
    curve = BOXES | {"F380M": (BOXES["F380M"][0], BOXES["F380M"][1] * np.linspace(0.9, 1, 20))}
    prints = [
        fingerprint(detector),
        fingerprint(detector, passbands=curve),
        fingerprint(detector, thresholds={"F277W": 10_000}),
        fingerprint(detector, thresholds={"F277W": None}),
        fingerprint(detector, parameters={"pars-jumpstep": {"rejection_threshold": 5.0}}),
        fingerprint(detector, hole=0.82),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(detector, thresholds={"F480M": 14_465}) == prints[0], "the default, said aloud"


BAD = np.ones((80, 80))
BAD[5, 5] = np.nan


@pytest.mark.parametrize(
    ("maps", "options", "said"),
    [
        ({"gain": np.ones((8, 8))}, {}, r"detector.gain has shape \(8, 8\)"),
        ({"gain": np.zeros((80, 80))}, {}, "detector.gain must be positive"),
        ({"dark": BAD}, {}, "detector.dark is not finite in 1 pixels"),
        ({"flat": BAD}, {}, "detector.flat must be positive"),
        ({"nonlinearity": np.full((80, 80), 1e-5)}, {}, "from 0 to 0.15"),
        ({"nonlinearity": np.full((80, 80), -1e-6)}, {}, "from 0 to 0.15"),
        ({}, {"passbands": {"F999X": ([1, 2], [1, 1])}}, "F999X is not an AMI filter"),
        ({}, {"passbands": {"F480M": ([46_000, 50_000], [1, 1])}}, "in um"),
        ({}, {"passbands": {"F480M": ([4.6, 5.0], [1, np.nan])}}, "throughput of F480M must be finite"),
        ({}, {"passbands": {"F480M": ([4.6, 4.8, 5.0], [1, 1])}}, "equal length"),
        ({}, {"passbands": {}}, "passbands: none given"),
        ({}, {"signal_thresholds": {"F480W": 1.0}}, "F480W unknown"),
        ({}, {"signal_thresholds": {"F480M": -1.0}}, "F480M has -1.0"),
        ({}, {"parameters": {"pars-nostep": {}}}, "pars-nostep unknown"),
        ({}, {"parameters": {"pars-detector1pipeline": {"skip": True}}}, "of that step"),
        ({}, {"parameters": {"pars-detector1pipeline": {"nostep": {"skip": True}}}}, "no such step"),
        ({}, {"hole_flat_to_flat": 80.0}, "hole_flat_to_flat is 80.0 m"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_written(tmp_path, maps, options, said):
    with pytest.raises(CalamiError, match=said):
        references.offline_cache(tmp_path / "c", toys.plain_detector(**maps), **{"passbands": BOXES} | options)
    assert not list(tmp_path.iterdir())


def test_it_never_builds_over_something_else(cache, detector, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(FileProblem, match="choose another folder"):
        references.offline_cache(tmp_path / "mine", detector, passbands=BOXES)
    (tmp_path / "file").write_text("...")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileProblem, match="choose another folder"):
            references.offline_cache(path, detector, passbands=BOXES)
    with pytest.raises(FileProblem, match="from something else"):
        references.offline_cache(cache.path, detector, passbands=BOXES, signal_thresholds={"F380M": 1.0})
    assert (tmp_path / "file").read_text() == (tmp_path / "mine" / "thesis.tex").read_text() == "..."


def test_a_damaged_cache_is_not_used(detector, tmp_path):
    made = references.offline_cache(tmp_path / "c", detector, passbands=BOXES)
    made.find("gain").unlink()
    for use in (lambda: references.OfflineCache.load(made.path), lambda: offline.run_offline(made.path, "os:getpid")):
        with pytest.raises(FileProblem, match=r"damaged, jwst_niriss_gain_.* missing; remove the folder"):
            use()
    (made.path / "calami.json").write_text("{}")
    with pytest.raises(FileProblem, match="not a CRDS cache made by calami"):
        references.OfflineCache.load(made.path)


def test_an_interrupted_build_leaves_nothing(detector, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(references, "_write_rules", interrupt)
        with pytest.raises(KeyboardInterrupt):
            references.offline_cache(tmp_path / "c", detector, passbands=BOXES)
    assert not list(tmp_path.iterdir())


BUILD = """
    import os, sys, numpy, toys
    from calami.instrument import niriss
    from calami.process import references
    boxes = {n: (numpy.linspace(*f.half_power, 20), numpy.ones(20)) for n, f in niriss.FILTERS.items()}
    if "die" in sys.argv:
        references._write_rules = lambda *_: os.kill(os.getpid(), 9)
    print(references.offline_cache(sys.argv[1], toys.plain_detector(), passbands=boxes).fingerprint)
"""


def start_build(*arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", textwrap.dedent(BUILD), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_build_and_two_at_once(cache, detector, tmp_path):
    (tmp_path / "killed").mkdir()
    killed = start_build(tmp_path / "killed" / "c", "die")
    both = [start_build(tmp_path / "two" / "c") for _ in range(2)]
    said = {build.communicate()[0].strip() for build in both}
    assert [b.returncode for b in both] == [0, 0] and said == {cache.fingerprint}
    assert [p.name for p in (tmp_path / "two").iterdir()] == ["c"], "one cache, and nothing beside it"
    assert contents(tmp_path / "two" / "c") == contents(cache.path)

    assert killed.communicate()[0] == "" and killed.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "killed").iterdir()
    assert left.name.endswith(".part")
    references.offline_cache(tmp_path / "killed" / "c", detector, passbands=BOXES)
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["c"], "what was left is swept up"


def test_losing_the_race_takes_the_winner(detector, tmp_path, monkeypatch):
    real = references._write_config

    def slow(folder, context):
        if not (tmp_path / "c").exists():
            with monkeypatch.context() as patch:
                patch.setattr(references, "_write_config", real)
                references.offline_cache(tmp_path / "c", detector, passbands=BOXES)
        real(folder, context)

    monkeypatch.setattr(references, "_write_config", slow)
    references.offline_cache(tmp_path / "c", detector, passbands=BOXES)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_the_default_cache_is_in_the_cache_folder_of_calami(detector, own_cache, monkeypatch):
    monkeypatch.setattr(references, "passband", BOXES.get)
    made = references.default_cache(detector)
    assert made.path.parent == own_cache / "crds" and made.fingerprint.startswith(made.path.name)
    before = contents(made.path)
    assert references.default_cache(detector) == made and contents(made.path) == before
    assert references.known_cache(made.context) == made
    assert references.known_cache("jwst_calami00000000.pmap") is references.known_cache("jwst_1584.pmap") is None


@pytest.mark.slow  # the page of offline references certifies a cache
def test_certify_finds_what_is_wrong_and_nothing_else(detector, tmp_path):
    spoilt = references.offline_cache(tmp_path / "c", detector, passbands=BOXES)
    with fits.open(spoilt.find("linearity"), mode="update") as hdus:
        del hdus[0].header["PEDIGREE"]
    rule = next(spoilt.mapping_folder.glob("*_dark_*.rmap"))
    rule.write_text(rule.read_text().replace("SUB80", "SUB64"))
    table = offline.certify(spoilt)
    assert len(table) == len(spoilt.references) + len(list(spoilt.mapping_folder.iterdir()))
    wrong = {name: said for name, result, said in table.iterrows() if result != "OK"}
    assert "PEDIGREE" in wrong.pop(spoilt.find("linearity").name)
    assert "sha1sum" in wrong.pop(rule.name)
    # The list of rules and the reference that the bad rule chooses are affected by it.
    assert {name for name, said in wrong.items() if rule.name not in said} == set()


# ---- Using it

EXPOSURE = {
    "META.INSTRUMENT.NAME": "NIRISS",
    "META.INSTRUMENT.DETECTOR": "NIS",
    "META.INSTRUMENT.FILTER": "F480M",
    "META.INSTRUMENT.PUPIL": "NRM",
    "META.EXPOSURE.TYPE": "NIS_AMI",
    "META.EXPOSURE.READPATT": "NISRAPID",
    "META.SUBARRAY.NAME": "SUB80",
    "META.OBSERVATION.DATE": "2022-06-05",
    "META.OBSERVATION.TIME": "13:40:57",
}


@pytest.mark.parametrize("name", niriss.FILTERS)
def test_crds_chooses_every_reference(cache, name):
    types = sorted({r.reftype for r in cache.references})
    with offline.use_offline_cache(cache):
        import crds as stsci

        found = stsci.getreferences(EXPOSURE | {"META.INSTRUMENT.FILTER": name}, types, observatory="jwst")
    assert {t: Path(p) for t, p in found.items()} == {t: cache.find(t, name) for t in types}


def test_another_subarray_finds_nothing(cache):
    with offline.use_offline_cache(cache):
        import crds as stsci

        found = stsci.getrecommendations(EXPOSURE | {"META.SUBARRAY.NAME": "FULL"}, ["mask", "nrm"], observatory="jwst")
    assert "NOT FOUND" in found["mask"] and found["nrm"] == cache.find("nrm").name


USERS = {"CRDS_PATH": "/users/cache", "CRDS_SERVER_URL": "https://jwst-crds.stsci.edu", "CRDS_MAPPATH": "/x"}


def test_the_environment_comes_back_exactly(cache, monkeypatch):
    for key, value in USERS.items():
        monkeypatch.setenv(key, value)
    before = dict(os.environ)
    with pytest.raises(RuntimeError, match="inside"), offline.use_offline_cache(cache.path) as used:
        assert used == cache and os.environ["CRDS_PATH"] == str(cache.path) and "CRDS_MAPPATH" not in os.environ
        with offline.use_offline_cache(cache):
            os.environ["CRDS_VERBOSITY"] = "10"
        assert os.environ["CRDS_PATH"] == str(cache.path), "the inner one does not end the outer one"
        raise RuntimeError("inside")
    assert dict(os.environ) == before
    given = offline.offline_environment(cache)
    assert given["CRDS_PATH"] == str(cache.path) and "CRDS_MAPPATH" not in given and given["PATH"] == before["PATH"]


def test_a_process_that_has_used_another_configuration_is_refused(cache, detector, tmp_path):
    other = references.offline_cache(tmp_path / "users", detector, passbands=BOXES, signal_thresholds={"F480M": 1.0})
    code = f"""
        import os
        os.environ |= {{"CRDS_PATH": {str(other.path)!r}, "CRDS_SERVER_URL": "https://crds-serverless-mode.stsci.edu"}}
        import crds as stsci
        present = lambda: {{k: v.lower() for k, v in os.environ.items()}}  # CRDS turns its None into none
        before = present()
        from calami import crds
        ask = lambda: stsci.getreferences({EXPOSURE!r}, ["gain"], observatory="jwst")["gain"]
        with crds.use_offline_cache({str(cache.path)!r}):  # imported, but not used yet
            print(ask())
        print(ask())
        try:
            with crds.use_offline_cache({str(cache.path)!r}):
                print("let in")
        except crds.CalamiError as error:
            print(error)
        print(ask(), present() == before)
    """
    run = run_python(code)
    assert run.returncode == 0, run.stderr
    mine, users, refusal, last = run.stdout.splitlines()
    assert (mine, users) == (str(cache.find("gain")), str(other.find("gain")))
    assert other.context in refusal and "run_offline" in refusal
    assert last == f"{users} True"


def test_one_cache_after_the_other_in_one_process(cache, detector, tmp_path):
    other = references.offline_cache(tmp_path / "other", detector, passbands=BOXES, signal_thresholds={"F480M": 1.0})
    code = f"""
        from calami import crds
        for path in ({str(cache.path)!r}, {str(other.path)!r}) * 2:
            with crds.use_offline_cache(path):
                import crds as stsci
                from crds.client import api
                print(stsci.getreferences({EXPOSURE!r}, ["pars-jumpstep"], observatory="jwst")["pars-jumpstep"])
                print(stsci.get_context_name("jwst"), api.get_crds_server())
    """
    run = run_python(code)
    assert run.returncode == 0, run.stderr
    each = [[str(c.find("pars-jumpstep")), f"{c.context} {references.SERVERLESS}"] for c in (cache, other)]
    assert run.stdout.splitlines() == (each[0] + each[1]) * 2


def test_a_function_runs_in_a_process_of_its_own(cache, caplog):
    caplog.set_level(logging.INFO, logger="calami")
    assert offline.run_offline(cache, "os:getpid") != os.getpid()
    assert offline.run_offline(cache, "builtins:print", "hello from there") is None
    assert "hello from there" in caplog.messages
    assert offline.run_offline(cache, "os:getenv", "CRDS_PATH") == str(cache.path)


@pytest.mark.parametrize(
    ("target", "arguments", "kind", "said"),
    [
        ("json:loads", ["{"], json.JSONDecodeError, "Expecting property name"),
        ("os:nothing", [], CalamiError, "no such function"),
        ("nothing", [], CalamiError, "no such function"),
        ("os:_exit", [7], CalamiError, "without an answer"),
        ("threading:Lock", [], Exception, "cannot pickle"),
    ],
)
def test_what_goes_wrong_over_there_is_told_here(cache, target, arguments, kind, said):
    with pytest.raises(kind, match=said):
        offline.run_offline(cache, target, *arguments)


# ---- The stock pipeline


@pytest.fixture(scope="module")
def processed(tmp_path_factory, cache, detector):
    """A star and a reference star through the unmodified stages 1 and 2, AmiAnalyze and AmiNormalize."""
    folder = tmp_path_factory.mktemp("run")
    log = folder / "log.txt"
    star = toys.write_uncal(folder, detector, RATE, nints=10, seed=11)
    calibrator = toys.write_uncal(folder, detector, RATE, nints=5, seed=12, activity=3, IS_PSF=True)
    keep = {"save_results": True, "output_dir": str(folder)}
    products = {}
    with offline.offline_executor(cache, log=log) as pool:

        def call(target, *paths, **options):
            paths = [str(p) for p in paths]
            return pool.submit(offline.call_by_name, target, *paths, **keep | options).result()

        for name, path, options in (("star", star, {}), ("calibrator", calibrator, {"dark_current": {"skip": False}})):
            call("jwst.pipeline:Detector1Pipeline.call", path, save_calibrated_ramp=True, steps=options)
            root = str(path).removesuffix("_uncal.fits")
            call("jwst.pipeline:Image2Pipeline.call", root + "_rateints.fits")
            call("jwst.ami:AmiAnalyzeStep.call", root + "_calints.fits", oversample=1, firstfew=2)
            products[name] = lambda suffix, root=root: Path(f"{root}_{suffix}.fits")
        call("jwst.ami:AmiNormalizeStep.call", products["star"]("ami-oi"), products["calibrator"]("ami-oi"))
    return products, log.read_text()


COMPLETE = "S_DQINIT S_SATURA S_SUPERB S_REFPIX S_LINEAR S_CHGMIG S_JUMP S_RAMP S_WCS S_FLAT S_AMIANA S_AMINOR".split()
SKIPPED = "S_IPC S_PERSIS S_CLNFNS S_PHOTOM".split()


def test_the_steps_are_complete_where_they_should_be(processed):
    header = fits.getheader(processed[0]["star"]("aminorm-oi"))
    status = {key: header.get(key) for key in COMPLETE + SKIPPED}
    assert status == dict.fromkeys(COMPLETE, "COMPLETE") | dict.fromkeys(SKIPPED, "SKIPPED")
    assert fits.getheader(processed[0]["calibrator"]("rate"))["S_DARK"] == "COMPLETE"


def test_the_products_name_the_simulated_references(processed, cache):
    products, log = processed
    header = fits.getheader(products["star"]("aminorm-oi"))
    assert header["CRDS_CTX"] == cache.context
    named = {v.removeprefix("crds://") for k, v in header.items() if k.startswith("R_") and v != "N/A"}
    used = "mask saturation superbias linearity gain readnoise distortion flat nrm throughput".split()
    assert named == {cache.find(t, "F480M").name for t in used}
    assert "dark" in fits.getheader(products["calibrator"]("rate"))["R_DARK"]
    for reftype in ("jumpstep", "detector1pipeline", "image2pipeline", "chargemigrationstep"):
        assert f"parameters found: {cache.find(f'pars-{reftype}', 'F480M')}" in log
    assert "jwst-crds.stsci.edu" not in log


def test_charge_migration_takes_its_threshold_from_the_cache(processed):
    products, log = processed
    assert "Using signal_threshold: 14465.00" in log
    with fits.open(products["star"]("ramp")) as ramp:
        signal, flags = ramp["SCI"].data, ramp["GROUPDQ"].data
    flagged = flags & niriss.CHARGELOSS > 0
    good = flags[:, :1] & niriss.DO_NOT_USE == 0
    over = (signal > 14_465) & good & (flags & niriss.SATURATED == 0)
    assert over.any() and flagged[over].all() and not flagged[:, 0].any()


def test_the_count_rate_comes_back(processed, detector):
    with fits.open(processed[0]["star"]("rate")) as hdus:
        rate, error, dq = (hdus[k].data.astype(float) for k in ("SCI", "ERR", "DQ"))
    expected = (RATE * detector.flat + detector.dark) / detector.gain
    good = (dq.astype("uint32") & niriss.DO_NOT_USE == 0) & np.isfinite(rate)
    good[:4] = False
    assert good.sum() > 6000
    deviation = (rate - expected) / error
    # refpix subtracts the noise of 160 reference pixels, odd and even apart: a shift common to all pixels.
    assert abs(np.median(deviation[good])) < 0.3 and 0.9 < deviation[good].std() < 1.1
    bright = good & (expected > 5000)
    ratio = rate[bright].sum() / expected[bright].sum() - 1
    assert abs(ratio) < 3 * np.sqrt((error[bright] ** 2).sum()) / expected[bright].sum() < 2e-3
    assert abs(deviation[40, 45]) < 3


def test_the_flat_is_divided_out(processed, detector):
    with fits.open(processed[0]["star"]("calints")) as hdus:
        rate, error = hdus["SCI"].data.astype(float), hdus["ERR"].data.astype(float)
    expected = RATE / detector.gain
    peak = np.s_[:, 38:43, 43:48]
    mean, sigma = np.nanmean(rate[peak]), np.sqrt(np.nansum(error[peak] ** 2)) / np.isfinite(rate[peak]).sum()
    assert abs(mean / expected[38:43, 43:48].mean() - 1) < max(3 * sigma / mean, 2e-3)
    assert abs(np.mean(detector.flat[38:43, 43:48]) - 1) > 2e-3, "or this tests nothing"


def test_the_sky_is_where_the_header_says(processed):
    from stdatamodels.jwst import datamodels

    with datamodels.open(processed[0]["star"]("calints")) as model:
        ra, dec = model.meta.wcs(*references.AIM_PIXEL)
        beside = model.meta.wcs(references.AIM_PIXEL[0], references.AIM_PIXEL[1] + 1)
    assert 3.6e6 * abs(dec - toys.UNCAL_SCI["DEC_REF"]) < 0.1
    assert 3.6e6 * abs(ra - toys.UNCAL_SCI["RA_REF"]) * np.cos(np.radians(dec)) < 0.1
    north, east = 3.6e6 * (beside[1] - dec), 3.6e6 * (beside[0] - ra) * np.cos(np.radians(dec))
    # Up in the image is PA_APER east of north; the header of program 1093 says 172.33 degrees.
    assert np.degrees(np.arctan2(east, north)) % 360 == pytest.approx(172.326, abs=0.05)
    assert np.hypot(north, east) == pytest.approx(65.75, abs=0.01)


def test_visibilities_of_a_point_are_one(processed):
    # Not exactly: the toy star is monochromatic and has no distortion, the model of the step has both.
    with fits.open(processed[0]["star"]("aminorm-oi")) as hdus:
        visibility = hdus["OI_VIS2"].data["VIS2DATA"]
        closure = hdus["OI_T3"].data["T3PHI"]
    assert visibility.shape == (21,) and np.abs(np.nanmedian(visibility) - 1) < 0.1
    assert np.nanstd(closure) < 3
