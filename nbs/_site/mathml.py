"""Write formulas as MathML, which browsers draw themselves: no script, no network."""

import re

from docutils.nodes import SkipNode
from docutils.utils.math import MathError, toplevel_code
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

NUMBERED = re.compile(r"\\(begin|end)\{(?:align|gather|equation|multline)\*?\}")

logger = logging.getLogger(__name__)


def convert(node, block):
    tex = node.astext().strip()
    # The converter knows `aligned` only; the forms that TeX would number mean the same here.
    tex = NUMBERED.sub(r"\\\1{aligned}", tex)
    if block and r"\\" in toplevel_code(tex):
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    try:
        return tex2mathml(tex, as_block=block)
    except MathError as error:
        logger.warning("formula not understood: %s (%s)", tex, error, location=node)
        return ""


def visit_inline(self, node):
    self.body.append(convert(node, False))
    raise SkipNode


def visit_block(self, node):
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(convert(node, True))
    self.body.append("</div>\n")
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
