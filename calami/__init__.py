"""Calibration tools for the aperture masking interferometry mode of NIRISS on JWST."""

__version__ = "0.1.0"
