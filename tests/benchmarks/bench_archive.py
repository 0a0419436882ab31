"""
How fast and how lean the downloader is: against curl on the same files, and with one file of 2 GB.

Both fetch from the same loopback server, in a process of its own, with the same number of files at a time; rounds are
interleaved. Files are served from memory and written to memory (``/dev/shm``, where there is one), so that no disc is
measured. Other work on the machine only adds time, so the best round counts; the median is told too. The large file is
made of zeros while it is sent, and is never stored by the server.

    nice python tests/benchmarks/bench_archive.py
"""

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

MEGABYTE = 2**20


def fits_of(megabytes):
    """Make the header of a FITS file with one image of zeros, and tell how many bytes of data follow."""
    import numpy as np
    from astropy.io import fits

    header = fits.ImageHDU(np.zeros((1, 1), "float32"), name="SCI").header
    header["NAXIS1"], header["NAXIS2"] = 1024, megabytes * MEGABYTE // 4096
    data = 4096 * header["NAXIS2"]
    primary = fits.PrimaryHDU().header.tostring()
    return (primary + header.tostring()).encode(), data + -data % 2880


class Handler(BaseHTTPRequestHandler):
    """Serves what is in a folder, and files of zeros named zeros-MEGABYTES.fits."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = urlsplit(self.path)
        name = parse_qs(parts.query).get("product_name", [parts.path])[0].rsplit("/", 1)[-1]
        self.send_response(200)
        self.send_header("ETag", '"1"')
        if name.startswith("zeros-"):
            head, length = fits_of(int(name.removeprefix("zeros-").removesuffix(".fits")))
            self.send_header("Content-Length", str(len(head) + length))
            self.end_headers()
            self.wfile.write(head)
            block = bytes(MEGABYTE)
            for start in range(0, length, MEGABYTE):
                self.wfile.write(memoryview(block)[: min(MEGABYTE, length - start)])
            return
        path = self.folder / name
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        with path.open("rb") as file:
            self.connection.sendfile(file)


def serve(folder):
    Handler.folder = Path(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def start_server(folder):
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(folder)], stdout=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))):
        return process, url


def make_files(folder, count, megabytes):
    import numpy as np

    head, length = fits_of(megabytes)
    rng = np.random.default_rng(1)
    names = [f"jw01516{k:03d}001_03102_00001_nis_uncal.fits" for k in range(1, count + 1)]
    for name in names:
        (folder / name).write_bytes(head + rng.bytes(length))
    return names


def by_curl(url, names, folder, workers):
    arguments = ["curl", "--silent", "--fail", "--parallel", "--parallel-immediate", "--parallel-max", str(workers)]
    for name in names:
        arguments += ["-o", str(folder / name), f"{url}/search/jwst/api/v0.1/retrieve_product?product_name={name}"]
    subprocess.run(arguments, check=True, stderr=subprocess.DEVNULL)


def by_calami(url, names, folder, workers, size):
    from astroquery.mast import conf

    from calami.archive import download, mast

    conf.server = url
    products = [mast.Product(name, name, size, True, "x", "1b") for name in names]
    download.download(products, folder, workers=workers)


def throughput(work, url, names, workers, rounds):
    size = (work / "served" / names[0]).stat().st_size
    seconds = {"curl": [], "calami": []}
    for k in range(rounds + 1):
        for who in seconds if k % 2 else reversed(list(seconds)):
            target = work / "target"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            began = time.perf_counter()
            if who == "curl":
                by_curl(url, names, target, workers)
            else:
                by_calami(url, names, target, workers, size)
            seconds[who] += [time.perf_counter() - began] if k else []  # the first round warms up
            assert all((target / n).stat().st_size == size for n in names)
    total = size * len(names) / 1e6
    return {
        "MB/s, best": {who: round(total / min(times)) for who, times in seconds.items()},
        "MB/s, median": {who: round(total / statistics.median(times)) for who, times in seconds.items()},
        "ratio of best": round(min(seconds["curl"]) / min(seconds["calami"]), 3),
        "ratio of medians": round(statistics.median(seconds["curl"]) / statistics.median(seconds["calami"]), 3),
    }


def memory(url, folder, megabytes):
    """Peak memory over idle of a process that fetches one file, MB."""
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import bench_archive, requests, keyring, tqdm.auto, astropy.table, concurrent.futures
from calami import archive
from astroquery.mast import conf
conf.server = {url!r}
def memory(key):  # of this process alone; what getrusage tells begins with that of the parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
head, length = bench_archive.fits_of({megabytes})
name = "zeros-{megabytes}.fits"
idle = memory("VmRSS")
product = archive.Product(name, name, len(head) + length, True, "x", "1b")
archive.download([product], {str(folder)!r})
print(idle, memory("VmHWM"), memory("VmRSS"))
"""
    shutil.rmtree(folder, ignore_errors=True)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    shutil.rmtree(folder)
    return float(told[0]), float(told[1])


def main(count=12, megabytes=64, workers=4, rounds=15, large=2048):
    memory_disc = Path("/dev/shm")
    work = Path(tempfile.mkdtemp(dir=memory_disc if memory_disc.is_dir() else None))
    (work / "served").mkdir()
    process, url = start_server(work / "served")
    try:
        result = {}
        for number, size in ((count * 4, max(megabytes // 16, 1)), (count, megabytes)):
            for path in (work / "served").iterdir():
                path.unlink()
            names = make_files(work / "served", number, size)
            result[f"{number} files of {size} MB"] = throughput(work, url, names, workers, rounds)
        idle, peak = memory(url, work / "large", large)
        result["memory"] = {"idle": round(idle), "peak": round(peak), "over idle": round(peak - idle, 1)}
        return result
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(work)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", help="only serve this folder")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    else:
        print(json.dumps(main(rounds=arguments.rounds), indent=1))
