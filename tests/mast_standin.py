"""
A stand-in for MAST on the loopback interface, with faults to order.

It answers the requests that astroquery's MastMissions and `calami.archive` make, in the shape of the real service:
programs and observations as whole numbers, columns told twice, sizes without checksums. A fault is put on a file with
``standin.faults["name"] = ["drop:1000", "429", …]``: one for each request, in order; after that it is served well.
"""

import io
import json
import os
import time
from collections import defaultdict
from contextlib import suppress
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from urllib.parse import parse_qs, urlsplit

GOOD_TOKEN = "good-token-of-the-standin"
COLUMNS = {
    "fileSetName": "VARCHAR", "program": "INTEGER", "observtn": "INTEGER", "visit": "INTEGER", "targprop": "VARCHAR",
    "targname": "VARCHAR", "instrume": "VARCHAR", "exp_type": "VARCHAR", "filter": "VARCHAR", "pupil": "VARCHAR",
    "opticalElements": "VARCHAR", "date_obs": "DATETIME", "productLevel": "VARCHAR", "access": "VARCHAR",
    "publicReleaseDate": "DATETIME",
}  # fmt: skip


def fits_bytes(seed=0, shape=(2, 3, 8, 8), **cards):
    """Make a small FITS file like an exposure: primary HDU, SCI, ERR."""
    import numpy as np
    from astropy.io import fits

    rng = np.random.default_rng(seed)
    primary = fits.PrimaryHDU()
    told = {"TELESCOP": "JWST", "INSTRUME": "NIRISS", "DETECTOR": "NIS", "EXP_TYPE": "NIS_AMI", "FILTER": "F480M"}
    primary.header.update(told | {"NGROUPS": shape[1], "NINTS": shape[0], "SEEDCARD": seed} | cards)
    images = [fits.ImageHDU(rng.normal(size=shape).astype("float32"), name=name) for name in ("SCI", "ERR")]
    out = io.BytesIO()
    fits.HDUList([primary, *images]).writeto(out)
    return out.getvalue()


def data_set(observation=1, activity=2, program=1516, **changes):
    """Make a row of the search, as the service gives it."""
    name = f"jw{program:05d}{observation:03d}001_031{activity:02d}_00001_nis"
    row = {
        "fileSetName": name, "program": program, "observtn": observation, "visit": 1, "targprop": "AB-DOR",
        "targname": "HD 36705", "instrume": "NIRISS", "exp_type": "NIS_AMI", "filter": "F480M", "pupil": "NRM",
        "opticalElements": "F480M;NRM", "date_obs": f"2026-03-{observation:02d}T10:00:00", "productLevel": "2b",
        "access": "PUBLIC", "publicReleaseDate": "2026-03-02T00:00:00",
    }  # fmt: skip
    return row | changes


def small_program(program=1516, observations=(1, 2), types=("uncal", "rateints")):
    """Make data sets with their files: a list of (row, {file type: bytes})."""
    targets = ({}, {"targprop": "HD-37093", "targname": "HD 37093"})
    return [
        (data_set(o, program=program, **targets[o % 2 == 0]), {t: fits_bytes(10 * o + k) for k, t in enumerate(types)})
        for o in observations
    ]


class StandIn:
    """The server; `start` it, or use it in a with statement."""

    def __init__(self, content=(), chunk=65536):
        self.rows, self.files, self.products = [], {}, []
        self.faults, self.requests, self.lock = defaultdict(list), [], Lock()
        self.proprietary, self.tokens, self.s3, self.slow_lists = set(), {GOOD_TOKEN}, {}, 0
        self.validators, self.chunk, self._undo = True, chunk, None
        for row, files in content:
            self.add(row, files)

    def add(self, row, files):
        self.rows.append(row)
        for kind, data in files.items():
            self.put(f"{row['fileSetName']}_{kind}.fits", data, row["fileSetName"])

    def put(self, name, data, dataset, **changes):
        self.files[name] = data
        self.products.append({
            "product_key": f"{dataset}_{name}", "access": "PUBLIC", "dataset": dataset, "instrument_name": "NIRISS",
            "filters": "F480M;NRM", "filename": name, "uri": f"{dataset}/{name}", "authz_primary_identifier": dataset,
            "authz_secondary_identifier": "CAL", "file_suffix": "_" + name.split("_")[-1].split(".")[0],
            "category": "1b", "size": len(data), "type": "science",
        } | changes)  # fmt: skip

    def hide(self, name):
        """Make a file proprietary."""
        self.proprietary.add(name)
        for product in self.products:
            if product["filename"] == name:
                product["access"] = "PRIVATE"

    def fault(self, name):
        with self.lock:
            waiting = self.faults.get(name)
            return waiting.pop(0) if waiting else ""

    # --- starting and stopping -------------------------------------------------------------------------------------

    def start(self, redirect_astroquery=True):
        handler = type("Handler", (_Handler,), {"standin": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a client that goes away in the middle is what is tried here
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        if redirect_astroquery:
            from astroquery.mast import conf
            from astroquery.mast.services import ServiceAPI

            before = conf.server, ServiceAPI.SERVICE_URL, ServiceAPI.MISSIONS_DOWNLOAD_URL
            conf.server, ServiceAPI.SERVICE_URL = self.url, self.url
            ServiceAPI.MISSIONS_DOWNLOAD_URL = f"{self.url}/search/"

            def undo():
                conf.server, ServiceAPI.SERVICE_URL, ServiceAPI.MISSIONS_DOWNLOAD_URL = before

            self._undo = undo
        return self

    def stop(self):
        if self._undo:
            self._undo()
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    standin: StandIn

    def log_message(self, *_):
        pass

    def _json(self, told, status=200, **headers):
        self._bytes(json.dumps(told).encode(), status, **{"Content-Type": "application/json"} | headers)

    def _bytes(self, data, status=200, **headers):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(data)

    def _token(self):
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get("mast_token")
        return cookie.value if cookie else ""

    def _note(self):
        with self.standin.lock:
            self.standin.requests.append((self.command, self.path, dict(self.headers)))

    def do_GET(self):
        self._note()
        parts, home = urlsplit(self.path), self.standin
        asked = parse_qs(parts.query)
        if parts.path == "/search/util/api/v0.1/column_list":
            told = [{"column_name": k, "qual_type": v.lower(), "description": k} for k, v in COLUMNS.items()]
            return self._json(told)
        if parts.path == "/whoami":
            known = self._token() in home.tokens
            return self._json({"anon": not known, "attrib": {"display_name": "A. N. Observer"} if known else {}})
        if parts.path == "/api/v0.1/path_lookup/":
            return self._json({u: {"path": home.s3.get(u.rsplit("/", 1)[-1])} for u in asked["uri"]})
        if parts.path.endswith("/retrieve_product"):
            return self._file(asked["product_name"][0].rsplit("/", 1)[-1])
        return self._file(parts.path.rsplit("/", 1)[-1])

    def do_POST(self):
        self._note()
        home, fault = self.standin, self.standin.fault(self.path.rsplit("/", 1)[-1])
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if fault.isdigit():
            return self._json({"error": "not now"}, int(fault))
        if fault == "hang":
            time.sleep(1.0)
        if self.path.endswith("/post_list_products"):
            wanted = set(told["dataset_ids"])
            if home.slow_lists and len(wanted) > home.slow_lists:
                return self._json({"error": "time-out"}, 504)
            forget = fault.split(":")[1] if fault.startswith("forget") else None
            rows = [p for p in home.products if p["dataset"] in wanted and p["dataset"] != forget]
            return self._json({"products": rows})
        return self._search(told)

    def _search(self, told):
        rows = self.standin.rows
        for condition in told["conditions"]:
            for key, value in condition.items():
                options = {v.strip().lstrip("0") for v in str(value).split(",")}
                rows = [r for r in rows if str(r[key]).lstrip("0") in options]
        page = rows[told.get("offset", 0) :][: told.get("limit", 5000)]
        columns = [c for c in told["select_cols"] if c in COLUMNS]
        columns += columns[:2]  # the service tells some columns twice
        info = [{"name": c, "type": COLUMNS[c]} for c in columns]
        self._json({"info": info, "results": [{c: r[c] for c in columns} for r in page], "totalResults": len(rows)})

    # --- files -----------------------------------------------------------------------------------------------------

    def _file(self, name):
        home, fault = self.standin, self.standin.fault(name)
        if fault.split(":")[0].isdigit():
            status, _, after = fault.partition(":")
            return self._bytes(b"not now", int(status), **({"Retry-After": after} if after else {}))
        if fault.startswith("redirect:"):
            target = fault.removeprefix("redirect:")
            return self._bytes(b"", 302, Location=target.replace("NAME", name))
        if name not in home.files:
            return self._bytes(b"no such product", 404)
        if name in home.proprietary and self._token() not in home.tokens:
            return self._bytes(b"unauthorised", 401)
        data = home.files[name]
        if fault == "page":
            return self._bytes(b"<html>maintenance</html>", 200, **{"Content-Type": "text/html"})
        if fault == "longer":
            data = data + b"\0" * 2880
        if fault == "shorter":
            data = data[:-2880]
        if fault == "corrupt":
            data = data[:2880] + b"\xff" * 2880 + data[5760:]
        if fault == "remade":  # the archive processes the data again, and this is served from now on
            data = home.files[name] = fits_bytes(99)
        self._send(name, data, fault)

    def _send(self, name, data, fault):
        home, start = self.standin, 0
        mark = f'"{hash(bytes(data)) & 0xFFFFFFFF:x}"'
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and fault != "no-range" and self.headers.get("If-Range", mark) == mark:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last or len(data) - 1)
            if start >= len(data):
                return self._bytes(b"", 416, **{"Content-Range": f"bytes */{len(data)}"})
            if fault == "wrong-range":
                start += 2880
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            data = data[start : end + 1]
        else:
            self.send_response(200)
        if fault.startswith("no-length"):
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(data)))
        if home.validators:
            self.send_header("ETag", mark)
        self.send_header("Content-Type", "application/fits")
        self.end_headers()
        with suppress(OSError):
            self._body(data, fault)

    def _body(self, data, fault):
        word, _, number = fault.partition(":")
        if word in ("drop", "no-length") and number:
            data = data[: int(number)]
            self.close_connection = True
        if word in ("trickle", "stall"):
            self.close_connection = True
            self.wfile.write(data[:3000])
            for k in range(200):
                time.sleep(0.01 if word == "trickle" else 0.2)
                if word == "trickle":
                    self.wfile.write(data[3000 + k : 3001 + k])
            return
        for offset in range(0, len(data), self.standin.chunk):
            self.wfile.write(data[offset : offset + self.standin.chunk])
            if word == "slowly":
                time.sleep(float(number))


class Disc:
    """Largest number of bytes in a folder while the context lasts."""

    def __init__(self, folder):
        self.folder, self.most, self.end = folder, 0, Event()

    def look(self):
        while not self.end.wait(0.001):
            total = 0
            for where, _, files in os.walk(self.folder):
                for file in files:
                    try:
                        total += (Path(where) / file).stat().st_size
                    except OSError:
                        continue
            self.most = max(self.most, total)

    def __enter__(self):
        self.thread = Thread(target=self.look)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()
