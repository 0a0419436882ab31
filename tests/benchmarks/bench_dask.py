"""What a worker does in the rows on workers of `python -m tests.benchmarks`."""

import functools
import time


@functools.cache
def star():
    """A cube of a star, made once in each process."""
    from toys import fringe_cube, fringe_images

    return fringe_cube(fringe_images("F480M", seed=1, size=69), 60, seed=1)


def work(job):
    """Wait for half a second, or fit the fringes of a cube some times; what comes back is one number."""
    load, number = job
    if load == "wait":
        time.sleep(0.5)
        return number
    from calami.fringes.fitting import fit

    cube, error, dq = star()
    for _ in range(2):
        found = fit(cube, error=error, dq=dq, filter="F480M", scale=65.6)
    return float(found.v2.mean())
