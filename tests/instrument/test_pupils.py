"""Measured pupils in files."""

import numpy as np
import pytest

from calami.core.problems import CalamiError, FileProblem
from calami.instrument.pupils import FilterPupil, MeasuredPupil, find_pupil, known_pupils


def test_those_that_come_with_calami_are_dated_and_whole():
    assert known_pupils() and all(name.startswith("flight-20") for name in known_pupils())
    for name in known_pupils():
        pupil = find_pupil(name)
        assert pupil.name == name and pupil.source and set(pupil.filters) == {"F380M", "F430M", "F480M"}
    assert find_pupil("flight").name == known_pupils()[-1]
    assert find_pupil(pupil) is pupil


@pytest.mark.parametrize("text", ["", "# toy: x\nfilter,mx\nF480M,1\n", "a\nb\n", "# toy: x\n\xb5,1"])
def test_files_that_are_none_are_refused(tmp_path, text):
    path = tmp_path / "toy.csv"
    path.write_text(text, encoding="latin-1")
    if text != "a\nb\n":
        with pytest.raises(FileProblem, match=r"measured pupil|save"):
            MeasuredPupil.load(path)
    whole = MeasuredPupil("toy", {"F480M": FilterPupil()}).save(path)
    assert np.allclose(MeasuredPupil.load(whole).of("F480M").values, FilterPupil().values)
    spoilt = whole.read_text().replace("0.8,", "0,")
    path.write_text(spoilt)
    with pytest.raises(FileProblem, match="above 0"):
        MeasuredPupil.load(path)


def test_a_pupil_has_all_its_numbers():
    with pytest.raises(CalamiError, match="42 finite numbers"):
        FilterPupil.from_values(np.ones(20))
    with pytest.raises(CalamiError, match="not in F277W"):
        MeasuredPupil("toy", {"F480M": FilterPupil()}).of("F277W")
