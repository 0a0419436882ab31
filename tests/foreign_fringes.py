"""
Stars behind a mask of seven hexagons by other code than calami's: its own Fourier sum, its own detector.

What calami's fringe model does not know of: holes of 0.804 m, a pupil 0.2 % larger and turned by 0.05°, charge that
diffuses, a flat that is wrong by some permille in each pixel, bad pixels, and stars that do not diffuse alike. So
closure phases and visibilities of the same star differ from place to place on the detector, as they do in flight.
"""

from functools import lru_cache

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

from calami.fringes import fitting
from calami.fringes.observables import Observables

#: Holes, m: rows and columns of the image; wavelengths and full widths of the bands, µm; pixel, mas.
HOLES = np.array(
    [
        (2.64, 0.0),
        (0.0, 2.28631),
        (1.32, -2.28631),
        (-1.32, 2.28631),
        (-1.98, 1.14315),
        (-1.32, -2.28631),
        (-1.98, -1.14315),
    ]
)
BANDS = {"F380M": (3.825, 0.205), "F430M": (4.283, 0.202), "F480M": (4.817, 0.302)}
PIXEL = 65.6
#: From the mask as designed to the image, rows and columns: as in flight to 0.2 % and 0.05°.
PUPIL = np.array([[1.0092, -0.0054], [0.0064, 1.0034]])
SIZE, FINE = 51, 6


@lru_cache
def _spot(name: str) -> np.ndarray:
    # Coefficients of a cubic spline through the image of a point, FINE times finer than pixels
    steps = (np.arange((SIZE + 12) * FINE) - (SIZE + 12) * FINE / 2) / FINE * PIXEL * np.pi / 648e6
    y, x = np.meshgrid(np.linspace(-0.5, 0.5, 33), np.linspace(-0.5, 0.5, 33), indexing="ij")
    flat = 0.804
    inside = np.maximum(np.abs(y), np.abs(0.5 * y) + np.abs(np.sqrt(0.75) * x)) <= flat / 2
    holes = HOLES @ PUPIL.T
    middle, width = BANDS[name]
    image, phases = 0.0, np.random.default_rng(1).normal(0, 30e-9, 7)
    for wave in (middle + width * np.linspace(-0.4, 0.4, 5)) * 1e-6:
        rows, columns = (np.exp(2j * np.pi / wave * np.outer(steps, v)) for v in (y[:, 0], x[0]))
        hole = rows @ inside @ columns.T
        down, across = (np.exp(2j * np.pi / wave * steps * h[:, None]) for h in holes.T)
        field = (down * np.exp(2j * np.pi * phases / wave)[:, None]).T @ across
        image = image + np.abs(hole * field) ** 2
    return spline_filter(image / image.sum() * FINE**2)


def star(name: str, place: tuple[float, float], spread: float = 0.02) -> np.ndarray:
    """Image of a point at a row and column from the middle; `spread`: part that each pixel gives each neighbour."""
    sub = (np.arange(3) - 1) / 3
    axes = [((np.arange(SIZE) - SIZE // 2 - p)[:, None] + sub).ravel() * FINE + (SIZE + 12) * FINE / 2 for p in place]
    fine = map_coordinates(_spot(name), np.meshgrid(*axes, indexing="ij"), order=3, prefilter=False)
    image = fine.reshape(SIZE, 3, SIZE, 3).mean(axis=(1, 3))
    around = np.pad(image, 1, mode="edge")
    neighbours = around[2:, 1:-1] + around[:-2, 1:-1] + around[1:-1, 2:] + around[1:-1, :-2]
    return (1 - 4 * spread) * image + spread * neighbours


class Detector:
    """Pixels whose flat is wrong by some permille, and some that are bad."""

    def __init__(self, seed: int = 0, flat: float = 0.005, bad: int = 12, alike: bool = False) -> None:
        rng, self.alike = np.random.default_rng(seed), alike
        self.flat = 1 + flat * rng.normal(size=(3 * SIZE, 3 * SIZE))
        self.bad = np.zeros(self.flat.shape, bool)
        self.bad.ravel()[rng.choice(self.flat.size, bad * 9, replace=False)] = True

    def expose(self, name: str, place, photons, rng, *, nints: int = 1, companion=None, noise: bool = True):
        """Images, errors, DQ of a star on the pixel `place` (row, column), with a companion (rows, columns, ratio)."""
        corner = np.rint(place).astype(int) + SIZE
        inner = tuple(np.subtract(place, np.rint(place)))
        spread = 0.02 + (0 if self.alike else 0.001 * rng.normal())
        image = star(name, inner, spread)
        if companion is not None:
            dy, dx, ratio = companion
            image = (image + ratio * star(name, (inner[0] + dy, inner[1] + dx), spread)) / (1 + ratio)
        window = tuple(slice(c, c + SIZE) for c in corner)
        image = np.clip(image, 0, None) * self.flat[window] * photons / nints
        cube = np.broadcast_to(image, (nints, SIZE, SIZE))
        if noise:
            cube = rng.poisson(cube) + rng.normal(0, 10 / np.sqrt(nints), cube.shape)
        dq = np.broadcast_to(self.bad[window].astype("uint32"), cube.shape)
        return cube, np.sqrt(np.broadcast_to(image, cube.shape) + 100 / nints), dq, corner - SIZE

    def observe(self, name: str, place, photons: float, rng: np.random.Generator, **more) -> Observables:
        """What calami fits to such a star; the place goes into the header as for a file."""
        cube, error, dq, corner = self.expose(name, place, photons, rng, **more)
        if len(cube) == 1:
            cube, error, dq = cube[0], error[0], dq[0]
        header = {"ROLL_REF": 0.0, "V3I_YANG": 0.0, "TARGNAME": f"star {rng.integers(1 << 31)}"}
        found = fitting.fit(cube, error=error, dq=dq, filter=name, scale=PIXEL, fix=False, header=header)
        for key, shift in zip(("STARROW", "STARCOL"), corner, strict=True):
            found.header[key] += int(shift)
        return found
