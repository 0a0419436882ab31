"""Make notebooks independent of when, where and with what editor they were run; refuse what cannot be repaired.

Replaced: the random ids of astropy tables, and the metadata of the notebook: without its kernel the documentation
cannot tell the language of a cell. Refused: errors, anything on the error stream (warnings, progress
bars), and paths of the machine.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
REPO = Path(__file__).resolve().parent.parent
TABLE_ID = re.compile(r'(<table id="table)[-\w]+"')
# Folders of the machine at hand, folders that other machines commonly have, and traces of a running shell.
HERE = [str(REPO.parent), str(Path.home()), tempfile.gettempdir(), sys.prefix]
MACHINE_PATH = re.compile(
    "|".join(
        [
            *(re.escape(folder.rstrip("/") + "/") for folder in HERE if len(folder) > 1),
            r"(?<![\w.~/])/(?:home|root|tmp|Users|usr|opt|mnt|srv|private)/",
            r"\b[A-Z]:\\",
            r"site-packages|ipython-input|ipykernel_",
        ]
    )
)


def texts(output):
    """The holders of text in an output, as pairs of a dictionary and a key."""
    if "text" in output:
        yield output, "text"
    for kind in output.get("data", {}):
        if kind.startswith("text/"):
            yield output["data"], kind


def normalise(notebook):
    """Repair the outputs of a notebook in place and list what is wrong with the rest."""
    problems = []
    for number, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), 1):
        where = f"code cell {number} (id {cell['id']})"
        for place, output in enumerate(cell["outputs"], 1):
            if output["output_type"] == "error":
                problems.append(f"{where}: the stored output is an error")
            elif output.get("name") == "stderr":
                problems.append(f"{where}: wrote to the error stream: {''.join(output['text'])[:200]!r}")
            for holder, key in texts(output):
                listed = isinstance(holder[key], list)
                text = "".join(holder[key])
                text = TABLE_ID.sub(rf'\g<1>-{cell["id"]}-{place}"', text)
                if match := MACHINE_PATH.search(text):
                    problems.append(f"{where}: output names the machine: {text[match.start() :][:120]!r}")
                holder[key] = text.splitlines(keepends=True) if listed else text
    return problems


def main():
    failed = False
    for path in sorted([*REPO.glob("nbs/*.ipynb"), *REPO.glob("nbs/[!_]*/*.ipynb")]):
        before = path.read_text(encoding="utf-8")
        notebook = json.loads(before)
        notebook["metadata"] = KERNEL
        for problem in normalise(notebook):
            print(f"{path.relative_to(REPO)}: {problem}", file=sys.stderr)
            failed = True
        after = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
