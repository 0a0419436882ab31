"""Names in prose lead to their reference, and pictures say what they show.

- A name of calami in backticks, in a docstring or a page, becomes a link, if one thing only bears that name.
- A picture without alternative text gets the heading of its section.
"""

from docutils import nodes

#: Where a name is no link: in links, headings and signatures.
NOT_IN = {"reference", "title", "pending_xref", "desc_signature", "desc_name"}
LINKED = ("function", "class", "exception", "method", "property", "attribute", "data", "module")
#: Too plain to be meant as the name of something.
PLAIN = set("name shape value values plot table info filter target path paths of apply".split())


def names_of(env):
    """Full name by the short names that mean it alone: the last part, and for members the last two. Collected once."""
    if getattr(env, "calami_names", None) is not None:
        return env.calami_names
    found = {}
    for full, entry in env.get_domain("py").objects.items():
        if entry.objtype not in LINKED or not full.startswith("calami"):
            continue
        parts = full.split(".")
        member = entry.objtype in ("method", "property", "attribute")
        for short in {full, ".".join(parts[-2:]), *(() if member else parts[-1:])}:
            found.setdefault(short, set()).add(full)
    env.calami_names = {k: full.pop() for k, full in found.items() if len(full) == 1 and k not in PLAIN}
    return env.calami_names


def link_to(app, full, here, shown):
    """A link from a page to the reference of a name, around what is shown."""
    entry = app.env.get_domain("py").objects[full]
    page = "" if here == entry.docname else app.builder.get_relative_uri(here, entry.docname)
    link = nodes.reference("", "", internal=True, refuri=f"{page}#{entry.node_id}", reftitle=full)
    link.append(shown)
    return link


def inside(node):
    """Whether a node is in a link, a heading or a signature already."""
    while node is not None and node.tagname not in NOT_IN:
        node = node.parent
    return node is not None


def heading(node):
    """The heading of the section that a node stands in."""
    while node is not None and not isinstance(node, nodes.section):
        node = node.parent
    title = next(iter(node.findall(nodes.title)), None) if node is not None else None
    return title.astext() if title is not None else "of this page"


def finish(app, doctree, docname):
    """Link literals that name something of calami, and give pictures their text, once all references are resolved."""
    names = names_of(app.env)
    for node in list(doctree.findall(nodes.literal)):
        word = node.astext().removesuffix("()")
        if word in names and not inside(node):
            node.replace_self(link_to(app, names[word], docname, node.deepcopy()))
    for picture in doctree.findall(nodes.image):
        if not picture.get("alt"):
            picture["alt"] = f"figure: {heading(picture)}"


def missing(app, env, node, contnode):
    """A name in a docstring that Sphinx does not find as it stands may be the short one of one thing."""
    full = names_of(env).get(node["reftarget"].removesuffix("()")) if node.get("refdomain") == "py" else None
    return link_to(app, full, node["refdoc"], contnode) if full else None


def forget(app, env):
    """Let the names be collected anew, after all pages are read."""
    env.calami_names = None


def setup(app):
    app.connect("doctree-resolved", finish)
    app.connect("missing-reference", missing)
    app.connect("env-updated", forget)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
