"""A second simulator of ramps, independent of calami's: its own optics, laws of charge and noise.

Nothing of calami is imported. Light is known on a lattice of quarter pixels, so that what flows across an edge is
driven by the light *on the edge*. Charges are in e-, reads in ADU, times in groups of `GROUP_TIME`.
"""

from dataclasses import dataclass, field, replace

import numpy as np

SCALE = np.radians(65.6e-3 / 3600)  # of a pixel, rad
GAIN = 1.611902  # e-/ADU
GROUP_TIME = 0.07544  # s
READ_NOISE = 16.7  # e- a read
FULL_WELL = 72_000.0  # e-
BANDS = {  # half-power wavelengths, µm
    "F277W": (2.413, 3.142), "F380M": (3.726, 3.931), "F430M": (4.182, 4.395), "F480M": (4.669, 4.971),
}  # fmt: skip
HOLES = np.array(
    [(0, -2.64), (-2.28631, 0), (2.28631, -1.32), (-2.28631, 1.32), (-1.14315, 1.98), (2.28631, 1.32), (1.14315, 1.98)]
)
THRESHOLDS = (0.005, 0.01, 0.02, 0.03)
LEVELS = np.linspace(100.0, 70_000.0, 1400)  # signals at which truth is given, e-
_STEP = 4  # points a pixel
_BOOLE = np.array([7, 32, 12, 32, 7]) / 90


@dataclass(frozen=True)
class Physics:
    """What moves charge, and what disturbs the reads."""

    law: str = "none"  # none, linear, growing, threshold, own, long
    edge: float = 0.6e-6  # per e-
    diagonal: float = 0.15e-6
    first: float = 0.0  # offset of the first read, e-, common to pixels; falls by exp(-1 / first_groups) a read
    first_groups: float = 1.5
    persistence: float = 0.0  # fraction of the charge of the integration before that comes out again
    persistence_groups: float = 5.0
    converter: float = 0.0  # amplitude, ADU, of a sine with a period of 1024 ADU; the phase differs between pixels
    nonlinear: float = 0.0  # loss of signal, per e-: S - a S²
    cubic: float = 0.0  # per e-²: S - c S³
    stripes: float = 0.0  # 1/f: rms of a column at a read, e-
    capacitance: tuple[float, float] = (0.005, 0.0003)  # to each of four neighbours, to each of four corners
    noise: bool = True


#: Laws, each of a strength that crosses 0.5 to 3 % within a ramp to 48 ke-.
LAWS = {
    "none": Physics(),
    "linear": Physics("linear"),
    "growing": Physics("growing", edge=0.25e-6, diagonal=0.06e-6),
    "threshold": Physics("threshold", edge=1.2e-6, diagonal=0.3e-6),
    "own": Physics("own", edge=0.4e-6, diagonal=0.1e-6),
    "long": Physics("long", edge=0.45e-6, diagonal=0.1e-6),
}
#: What else may be in the reads; added to a law by `replace`.
NUISANCES = {
    "clean": {},
    "first reads 5 e-": {"first": 5.0},
    "first reads 25 e-": {"first": 25.0},
    "first reads -15 e-": {"first": -15.0, "first_groups": 2.5},
    "persistence": {"persistence": 1e-3},
    "converter": {"converter": 2.0},
    "nonlinearity": {"nonlinear": 2e-7},
    "cubic nonlinearity": {"cubic": 3e-12},
    "1/f": {"stripes": 6.0},
}


@dataclass(frozen=True)
class Light:
    """Photo-current of pixels, on the edges to the next column and row, and on corners, e- a group."""

    pixel: np.ndarray  # (H, W)
    right: np.ndarray  # (H, W - 1)
    down: np.ndarray  # (H - 1, W)
    corner: np.ndarray  # (H - 1, W - 1)

    def scaled(self, peak):
        """The same image with so many e- a group in its brightest pixel."""
        factor = peak / self.pixel.max()
        return Light(*(factor * a for a in (self.pixel, self.right, self.down, self.corner)))

    def with_flat(self, flat):
        """What pixels of unequal sensitivity collect of it."""
        return replace(self, pixel=self.pixel * flat)


def light_of(band="F480M", center=(15.0, 15.0), shape=(31, 31), pistons=None):
    """Light of a point source behind seven hexagons, 0.80 m from flat to flat, with pistons in nm."""
    size = 0.8 / np.sqrt(3)  # corner to centre
    grid = (np.arange(48) + 0.5) / 48 * 2 * size - size
    x, y = np.meshgrid(grid, grid)
    hexagon = ((np.abs(y) <= 0.4) & (np.abs(y) / 2 + np.abs(x) * np.sqrt(3) / 2 <= 0.4)).astype(float)
    points = [np.arange(-2, _STEP * n - 1) / _STEP - c for n, c in zip(shape, center, strict=True)]
    total = 0.0
    pistons = np.zeros(7) if pistons is None else np.asarray(pistons)
    for wavelength in np.linspace(*BANDS[band], 3):
        v, u = (p * SCALE / (wavelength * 1e-6) for p in points)
        across, along = (np.exp(-2j * np.pi * np.outer(w, grid)) for w in (v, u))
        envelope = across @ hexagon @ along.T
        waves = sum(
            np.outer(np.exp(-2j * np.pi * v * hy), np.exp(-2j * np.pi * u * hx))
            * np.exp(2j * np.pi * 1e-3 * piston / wavelength)
            for (hx, hy), piston in zip(HOLES, pistons, strict=True)
        )
        total = total + np.abs(envelope * waves) ** 2
    rows, columns = shape
    along_x = sum(w * total[:, k : k + _STEP * columns : _STEP][:, :columns] for k, w in enumerate(_BOOLE))
    along_y = sum(w * total[k : k + _STEP * rows : _STEP][:rows] for k, w in enumerate(_BOOLE))
    pixel = sum(w * along_x[k : k + _STEP * rows : _STEP][:rows] for k, w in enumerate(_BOOLE))
    inner = slice(_STEP, -1, _STEP)  # pixel boundaries within the image
    light = Light(pixel, along_y[:, inner], along_x[inner], total[inner, inner])
    return light.scaled(1.0)


def _excess(charge, physics):
    # What drives the flow out of a pixel.
    if physics.law == "growing":
        return charge * (1 + 4e-5 * charge / 2)
    if physics.law == "threshold":
        over = np.maximum(charge - 25_000.0, 0.0)
        return over * (1 + 4e-5 * over / 2)
    return charge


def _between(drive, light, coefficient, pairs):
    # Flow between pairs of slices (from, to), given the light on what they share.
    flow = np.zeros_like(drive)
    for (a, b), on in zip(pairs, light, strict=True):
        moved = coefficient * (drive[a] - drive[b]) * on
        flow[a] -= moved
        flow[b] += moved
    return flow


_ALL, _LOW, _HIGH = slice(None), slice(None, -1), slice(1, None)
_EDGES = (((_ALL, _LOW), (_ALL, _HIGH)), ((_LOW, _ALL), (_HIGH, _ALL)))
_CORNERS = (((_LOW, _LOW), (_HIGH, _HIGH)), ((_LOW, _HIGH), (_HIGH, _LOW)))
_NEXT = (((_ALL, slice(None, -2)), (_ALL, slice(2, None))), ((slice(None, -2), _ALL), (slice(2, None), _ALL)))


def flow_of(charge, light, physics):
    """Change of the charges a group, e-; sums to nothing."""
    if physics.law == "none":
        return np.zeros_like(charge)
    if physics.law == "own":  # a full pixel spreads its own light, whatever its neighbours hold
        out = charge * light.pixel
        flow = np.zeros_like(charge)
        for pairs, c in ((_EDGES, physics.edge), (_CORNERS, physics.diagonal)):
            for a, b in pairs:
                moved = c * (out[a] - out[b])
                flow[a] -= moved
                flow[b] += moved
        return flow
    drive = _excess(charge, physics)
    edges = (light.right, light.down)
    if physics.law == "long":  # stronger along rows than along columns, and to the pixel after the next
        edges = (1.3 * light.right, 0.7 * light.down)
        far = (light.pixel[:, 1:-1] * 0.2, light.pixel[1:-1] * 0.1)
        return (
            _between(drive, edges, physics.edge, _EDGES)
            + _between(drive, (light.corner, 0.6 * light.corner), physics.diagonal, _CORNERS)
            + _between(drive, far, physics.edge, _NEXT)
        )
    corners = (light.corner, light.corner)
    return _between(drive, edges, physics.edge, _EDGES) + _between(drive, corners, physics.diagonal, _CORNERS)


def charges_of(light, times, physics, step=0.25):
    """Charges at times (groups, increasing), e-, by steps of the midpoint rule, shape (times, H, W)."""
    charge, now, found = np.zeros_like(light.pixel), 0.0, []
    for time in times:
        count = max(int(np.ceil((time - now) / step)), 1)
        for _ in range(count):
            h = (time - now) / count
            half = charge + h / 2 * (light.pixel + flow_of(charge, light, physics))
            charge = charge + h * (light.pixel + flow_of(half, light, physics))
        now = time
        found.append(charge)
    return np.array(found)


def _with_neighbours(image, axis):
    # Sum of the two neighbours along an axis; beyond the border it stays as it is there.
    image = np.moveaxis(image, axis, -1)
    total = np.empty_like(image)
    total[..., 1:-1] = image[..., 2:] + image[..., :-2]
    total[..., 0], total[..., -1] = image[..., 0] + image[..., 1], image[..., -1] + image[..., -2]
    return np.moveaxis(total, -1, axis)


def seen(charge, capacitance):
    """Charges through the capacitance between pixels."""
    edge, corner = capacitance
    across = _with_neighbours(charge, -1)
    out = charge * (1 - 4 * edge - 4 * corner)
    out += edge * (across + _with_neighbours(charge, -2))
    out += corner * _with_neighbours(across, -2)
    return out


def _signals(charge, physics):
    signal = seen(charge, physics.capacitance)
    if physics.nonlinear or physics.cubic:
        signal = signal - physics.nonlinear * signal**2 - physics.cubic * signal**3
    return signal


def truth_of(light, physics):
    """
    Departure of the brightest pixel's rate from that at zero signal, at `LEVELS`.

    Nonlinearity is part of it (the rate of the pixel does fall); offsets, persistence and the converter are not.
    """
    row, col = np.unravel_index(np.argmax(seen(light.pixel, physics.capacitance)), light.pixel.shape)
    times = np.linspace(0, 1.3 * FULL_WELL / light.pixel.max(), 201)[1:]
    signal = np.r_[0.0, _signals(charges_of(light, times, physics, step=9.0), physics)[:, row, col]]
    times = np.r_[0.0, times]
    rate = np.gradient(signal, times, edge_order=2)
    return np.interp(LEVELS, signal, rate / seen(light.pixel, physics.capacitance)[row, col] - 1)


def levels_of(departure, thresholds=THRESHOLDS):
    """Signals at which a departure (at `LEVELS`) first passes the thresholds, e-; infinite where it does not."""
    found = {}
    for threshold in thresholds:
        below = np.nonzero(departure <= -threshold)[0]
        k = below[0] if len(below) else 0
        share = (departure[k - 1] + threshold) / (departure[k - 1] - departure[k]) if k else np.inf
        found[threshold] = float(LEVELS[k - 1] + share * (LEVELS[k] - LEVELS[k - 1])) if k else np.inf
    return found


def reads_of(light, groups, nints, physics, rng, charge=None):
    """
    Linearised reads of an exposure, ADU, float32, shape (nints, groups, H, W).

    `charge` may hold the charges without noise at the reads, if they are known (it may be longer).
    """
    if charge is None:
        charge = charges_of(light, np.arange(1, groups + 1), physics)
    step = np.diff(charge[:groups], axis=0, prepend=0.0).astype("float32")
    held = np.broadcast_to(step, (nints, *step.shape))
    if physics.noise:
        held = rng.standard_normal((nints, *step.shape), dtype=np.float32)
        held *= np.sqrt(np.maximum(step, 0))
        held += step
    reads = _signals(np.cumsum(held, axis=1), physics)
    at = np.arange(1, groups + 1)[:, None, None]
    if physics.persistence:
        released = physics.persistence * charge[groups - 1] * (1 - np.exp(-at / physics.persistence_groups))
        reads += released.astype("float32")
    if physics.first:
        reads += (physics.first * np.exp(-(at - 1) / physics.first_groups)).astype("float32")
    if physics.noise:
        noise = rng.standard_normal(reads.shape, dtype=np.float32)
        noise *= np.float32(READ_NOISE)
        reads += noise
    if physics.stripes:
        shape = (nints, groups, 1, reads.shape[3])
        reads = (
            reads
            + physics.stripes * rng.standard_normal(shape)
            + physics.stripes / 2 * rng.standard_normal((nints, groups, 1, 1))
        )
    reads /= np.float32(GAIN)
    if physics.converter:
        # the bias, and with it the phase, belongs to the pixel: it stays the same between exposures
        bias = np.random.default_rng(5).uniform(0, 1024, (64, 64))[: reads.shape[2], : reads.shape[3]]
        reads = reads + physics.converter * np.sin(2 * np.pi * (reads + bias) / 1024)
    return reads.astype("float32")


@dataclass(frozen=True)
class Program:
    """Exposures of one filter, and what is true of each pointing."""

    ramps: list  # (nints, groups, H, W) each
    facts: list  # name, pointing, filter of each, as keywords of calami's `statistics_of`
    truth: dict = field(default_factory=dict)  # pointing -> departure at LEVELS

    def levels(self, weights=None, thresholds=THRESHOLDS):
        """True levels, e-, of the mean of the pointings' departures with these weights."""
        weights = weights or dict.fromkeys(self.truth, 1 / len(self.truth))
        mean = sum(w * self.truth[name.split(" (")[0]] for name, w in weights.items())
        return levels_of(mean, thresholds)


def program_of(seed, physics, band="F480M", shape=(31, 31), peak=48e3, depths=(3, 6, 10, 16), pointings=2, photons=1.0):
    """
    Exposures at several depths (groups) and pointings; the peak pixel reaches about `peak` e- in the deepest.

    Integrations are such that an exposure collects about 1e8 times `photons` photons over the whole image.
    """
    rng = np.random.default_rng([seed, 77])
    made = Program([], [], {})
    middle = np.array(shape) // 2
    for number in range(pointings):
        center = middle + rng.normal(0, 0.04, 2) + (0.0, 0.2 * (number % 2))
        light = light_of(band, center, shape, rng.normal(0, 30, 7)).with_flat(rng.normal(1, 0.01, shape))
        light = light.scaled(peak / max(depths) * rng.uniform(0.95, 1.05))
        charge = charges_of(light, np.arange(1, max(depths) + 1), physics)
        name = f"pointing {number}"
        made.truth[name] = truth_of(light, physics)
        for groups in depths:
            nints = max(round(photons * 1.8e6 / (light.pixel.max() * groups)), 4)
            made.ramps.append(reads_of(light, groups, nints, physics, rng, charge))
            made.facts.append({"name": f"{name}, {groups} groups", "pointing": name, "filter": band})
    return made
