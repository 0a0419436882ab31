"""Names in prose lead to their reference, and pictures say what they show.

- A name of calami in backticks, in a docstring or a page, becomes a link, if one thing only bears that name.
- A picture without alternative text gets the heading of its section.
"""

from docutils import nodes
from sphinx.errors import NoUri
from sphinx.transforms.post_transforms import SphinxPostTransform

LINKED = ("function", "class", "exception", "method", "property", "attribute", "data", "module")
#: Too plain to be meant as the name of something.
PLAIN = {
    "name",
    "shape",
    "value",
    "values",
    "plot",
    "table",
    "info",
    "filter",
    "target",
    "path",
    "paths",
    "of",
    "apply",
}


def short_names(objects):
    """Full name by the short names that mean it alone: the last part, and for members the last two."""
    found = {}
    for full, entry in objects.items():
        if entry.objtype not in LINKED or not full.startswith("calami"):
            continue
        parts = full.split(".")
        member = entry.objtype in ("method", "property", "attribute")
        for short in {full, ".".join(parts[-2:]), *(() if member else parts[-1:])}:
            found.setdefault(short, set()).add(full)
    return {short: full.pop() for short, full in found.items() if len(full) == 1 and short not in PLAIN}


class LinkNames(SphinxPostTransform):
    """Link literals and unresolved roles that name something of calami; give pictures their text."""

    default_priority = 8  # before missing references are turned into plain text
    formats = ("html",)

    def run(self, **kwargs):
        """Walk through the page."""
        domain = self.env.get_domain("py")
        names = getattr(self.env, "calami_short_names", None)
        if names is None:
            names = self.env.calami_short_names = short_names(domain.objects)
        for node in list(self.document.findall(nodes.literal)):
            word = node.astext().removesuffix("()")
            if word in names and not self.inside(node):
                self.link(node, names[word], domain)
        for picture in self.document.findall(nodes.image):
            if not picture.get("alt"):
                picture["alt"] = f"figure: {self.heading(picture)}"

    @staticmethod
    def inside(node):
        """Whether a node is in a link, a heading or a signature already."""
        while node is not None:
            if isinstance(node, nodes.reference | nodes.title | nodes.TextElement) and node.tagname in (
                "reference", "title", "pending_xref", "desc_signature", "desc_name"
            ):  # fmt: skip
                return True
            node = node.parent
        return False

    @staticmethod
    def heading(node):
        """The heading of the section that a node stands in."""
        while node is not None and not isinstance(node, nodes.section):
            node = node.parent
        title = next(iter(node.findall(nodes.title)), None) if node is not None else None
        return title.astext() if title is not None else "of this page"

    def link(self, node, full, domain):
        """Put a link around a node."""
        entry = domain.objects[full]
        here = self.env.docname
        try:
            address = self.app.builder.get_relative_uri(here, entry.docname)
        except NoUri:
            return
        where = f"{'' if here == entry.docname else address}#{entry.node_id}"
        link = nodes.reference("", "", internal=True, refuri=where, reftitle=full)
        node.replace_self(link)
        link.append(node)


def missing(app, env, node, contnode):
    """A name in a docstring that Sphinx does not find as it stands may be the short one of one thing."""
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    names = getattr(env, "calami_short_names", None)
    if names is None:
        names = env.calami_short_names = short_names(domain.objects)
    full = names.get(node["reftarget"].removesuffix("()"))
    if full is None:
        return None
    entry = domain.objects[full]
    address = app.builder.get_relative_uri(node["refdoc"], entry.docname)
    where = f"{'' if node['refdoc'] == entry.docname else address}#{entry.node_id}"
    link = nodes.reference("", "", internal=True, refuri=where, reftitle=full)
    link.append(contnode)
    return link


def forget(app, env):
    """Names are collected once, after all pages are read."""
    env.calami_short_names = None


def setup(app):
    app.add_post_transform(LinkNames)
    app.connect("missing-reference", missing)
    app.connect("env-updated", forget)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
