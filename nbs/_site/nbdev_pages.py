"""Turn a notebook into a page of documentation, before Sphinx reads it.

The notebook is written for `nbdev`: lines starting with `#|` at the top of a cell say what the cell is for.

- `#| hide` and `#| default_exp` cells, and cells without code, are left out.
- An `#| export` cell becomes the documentation of the public names it defines, above its folded source.
- A `#| hide_input` cell shows its output only.
- `show_doc(name)` is left out: the documentation is already where the name is exported.
- The index lists all other notebooks, in order.
"""

import ast
import json
import re
from pathlib import Path

HELPERS = "Source of helpers"
#: What people look for, by the page that the search leads to first.
TOPICS = {
    "01_dataset": "exposure; folder; summary",
    "02_mapping": "mapping; mnemonic; rename",
    "04_cm_analysis": "charge migration; brighter-fatter; APT 1516",
    "05_demo": "demo; simulated program",
    "06_cli": "command line; options",
    "howto/a_quickstart": "quickstart; first steps; tutorial",
    "howto/clean_and_fix": "bad pixel; bad pixels; sigma clip; sigma clipping; clipping; outlier; outliers; median",
    "howto/dice_and_slice": "group; groups; early groups; late groups; integrations; dice; slice; dicing; frames",
    "howto/rearrange": "dither; dithers; join; stack; regroup; segments",
    "howto/process": "pipeline; run the pipeline; reprocess; calwebb; CRDS context; reference files",
    "howto/what_was_done": "flags; parameters; provenance; what was done; versions",
    "howto/correct_your_data": "correction; mitigation; correct charge migration",
    "howto/explore": "explore; widget; widgets; JupyterLab; interactive; click; blink",
    "archive/01_token": "token",
    "archive/03_download": "download; fetch; MAST",
    "archive/04_apt": "APT; APT file",
    "archive/05_simbad": "SIMBAD; spectral type; brightness; magnitude",
    "program/01_signals": "count rate; count rates; peak; peak signal",
    "fringes/04_observables": "closure phase; closure phases; visibility; squared visibility",
    "fringes/07_oifits": "OIFITS",
    "fringes/09_calibration": "calibrator; calibrate; reference star",
    "fringes/10_companions": "companion; binary",
    "fringes/11_limits": "contrast; contrast curve; detection limit; limits",
    "migration/02_onset": "onset; threshold; ADU level; linearity; non-linearity; nonlinearity",
    "migration/03_kernel": "kernel; coefficients",
    "migration/08_mitigation": "signal_threshold; mitigation scan",
    "migration/09_saturation": "saturation; effective saturation; advise; integration time",
    "migration/10_report": "report",
    "studies/05_intrapixel": "APT 1504; intra-pixel; sub-pixel",
    "studies/03_placement": "APT 4478; filter offset; pixel center; placement",
    "studies/04_calibrators": "APT 4480",
    "simulate/05_level1b": "simulate; simulation; uncal",
    "process/07_graft": "graft; header",
    "effects/k_cosmic_rays": "cosmic ray; cosmic rays; jump; jumps",
    "effects/i_one_over_f": "1/f; 1/f noise",
}
DIRECTIVE = re.compile(r"^\s*#\|\s*(?P<name>[\w-]+)\s*:?\s*(?P<value>.*?)\s*$")


def split(source):
    """The directives at the top of a cell, as a dictionary, and the code below them."""
    lines = source.splitlines()
    directives = {}
    while lines and (not lines[0].strip() or DIRECTIVE.match(lines[0])):
        if match := DIRECTIVE.match(lines.pop(0)):
            directives[match["name"]] = match["value"]
    return directives, "\n".join(lines)


def constants(node, lines):
    """Public names assigned in a statement that a `#:` comment documents, as autodoc wants it."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    above = lines[node.lineno - 2].strip() if node.lineno > 1 else ""
    if not (above.startswith("#:") or " #: " in lines[node.end_lineno - 1]):
        return []
    return [t.id for t in targets if isinstance(t, ast.Name)]


def public(code):
    """Pairs of an autodoc directive and a public name, for each that the code defines."""
    found = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(("autofunction", node.name))
        elif isinstance(node, ast.ClassDef):
            # The front door shows what it has from the rooms, too, and a class what it has from private ones.
            bases = map(ast.unparse, node.bases)
            whole = any(base in ("Exposure", "ExposureSet") or base.startswith("_") for base in bases)
            found.append(("autoclass-inherited" if whole else "autoclass", node.name))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            short = node.lineno == node.end_lineno and len(ast.unparse(node.value)) < 60
            kind = "autodata" if short else "autodata-long"
            found += [(kind, name) for name in constants(node, code.splitlines())]
    return [(kind, name) for kind, name in found if not name.startswith("_")]


def passes_on(statement):
    """The lines below the imports that name the logger of the module, or what a page or a door passes on."""
    words = ast.unparse(statement)
    return isinstance(statement, ast.Assign) and any(w in words for w in ("getLogger", "_all_", "_NAMES", "forward("))


def skip_member(app, what, name, thing, skip, options):
    """Fields of a named tuple are told in its docstring; Python's own word on them says nothing."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def markdown(source, name):
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


def documented(names, module, name):
    options = {"autoclass": "   :members:\n", "autodata-long": "   :no-value:\n"}  # long values are in the source
    options["autoclass-inherited"] = "   :members:\n   :inherited-members:\n"
    blocks = [f".. {kind.split('-')[0]}:: {module}.{name}\n{options.get(kind, '')}" for kind, name in names]
    return markdown("```{eval-rst}\n" + "\n".join(blocks) + "```", name)


def exported(cell, code, module):
    """Documentation of what an export cell defines, then its source, folded where it would distract."""
    names = public(code)
    statements = ast.parse(code).body
    if names:
        cell["metadata"]["mystnb"] = {"code_prompt_show": "Source", "code_prompt_hide": "Source"}
    elif all(isinstance(s, ast.Import | ast.ImportFrom) or passes_on(s) for s in statements):
        cell["metadata"]["mystnb"] = {"code_prompt_show": "Imports", "code_prompt_hide": "Imports"}
    elif any(isinstance(s, ast.Assign | ast.AnnAssign) for s in statements):
        return [cell]  # a table of constants is to be read
    else:
        cell["metadata"]["mystnb"] = {"code_prompt_show": HELPERS, "code_prompt_hide": HELPERS}
    cell["metadata"]["tags"] = ["hide-input"]
    return ([documented(names, module, f"{cell['id']}-api")] if names else []) + [cell]


def prompt_of(cell):
    """What stands above the folded source of a cell, if it is folded."""
    return cell["metadata"].get("mystnb", {}).get("code_prompt_show")


def page(nb):
    """The cells of a notebook as they are to be shown."""
    shown, module = [], None
    for cell in nb["cells"]:
        if cell["cell_type"] != "code":
            shown.append(cell)
            continue
        directives, code = split("".join(cell["source"]))
        if "default_exp" in directives:
            module = f"calami.{directives['default_exp']}".removesuffix(".__init__")
        if not code.strip() or directives.keys() & {"hide", "default_exp"} or code.startswith("show_doc("):
            continue
        cell["source"] = code
        if directives.keys() & {"export", "exporti", "exports"}:
            for new in exported(cell, code, module):
                if shown and prompt_of(new) == prompt_of(shown[-1]) == HELPERS:
                    shown[-1]["source"] += "\n\n\n" + new["source"]  # one fold for helpers in a row
                else:
                    shown.append(new)
        else:
            if "hide_input" in directives:
                cell["metadata"]["tags"] = ["remove-input"]
            shown.append(cell)
    return shown


def rooms(source_dir):
    """Folders of notebooks that make modules: those with a door."""
    order = "core instrument exposures archive process fringes simulate program migration studies widgets".split()
    return [room for room in order if (source_dir / room / "index.ipynb").is_file()]


def contents(source_dir):
    """The list of all pages: the user's, how-tos, analyses, effects, validation; then the rooms, each with its door."""
    trees = []
    folders = {"Start": "0[1-9]_*.ipynb", "How to": "howto/*.ipynb", "Analyses": "analyses/*.ipynb"}
    folders |= {"Effects": "effects/*.ipynb", "Validation": "validation/*.ipynb"}
    folders |= {room.capitalize(): f"{room}/*.ipynb" for room in rooms(source_dir)}
    folders |= {"Old import paths": "00_*.ipynb"}
    for caption, pattern in folders.items():
        pages = [p.relative_to(source_dir).with_suffix("") for p in source_dir.glob(pattern)]
        pages.sort(key=lambda p: (p.name != "index", p))
        if pages:
            entries = "\n".join(p.as_posix() for p in pages)
            trees.append(f"```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n:hidden:\n\n{entries}\n```")
    return markdown("\n\n".join(trees), "contents")


def index(topics):
    """Index entries of a page; the search puts a page with the word as a main entry first."""
    lines = "\n".join(f"   ! single: {topic}" for topic in topics.split("; "))
    return markdown(f"```{{eval-rst}}\n.. index::\n{lines}\n```", "topics")


def on_source_read(app, docname, source):
    if Path(app.env.doc2path(docname)).suffix != ".ipynb":
        return
    nb = json.loads(source[0])
    nb["cells"] = page(nb)
    if docname in TOPICS:
        nb["cells"].insert(1, index(TOPICS[docname]))
    if docname == app.config.root_doc:
        nb["cells"].append(contents(Path(app.srcdir)))
    source[0] = json.dumps(nb)


def setup(app):
    app.connect("source-read", on_source_read)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
