"""Calibration tools for the aperture masking interferometry mode of NIRISS on JWST."""

__version__ = "0.1.0"

import lazy_loader

from calami import moved

moved.install()
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "core.problems": ["CalamiError"],
        "dataset": ["Data", "Dataset"],
        "exposures.folder": ["ExposureSet"],
        "exposures.exposure": ["Exposure"],
        "instrument.migration": ["Migration"],
        "migration.answers": ["answer_questions"],
        "migration.onset": ["quantify"],
    },
)
