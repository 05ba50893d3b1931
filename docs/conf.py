import re
from importlib.metadata import metadata

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

project = "procrastinate-extconn"
author = "The procrastinate-extconn authors"
copyright = author
release = metadata(project)["Version"]
version = release
urls = dict(url.split(", ") for url in metadata(project).get_all("Project-URL", []))

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "benchmarks"]
default_role = "py:obj"
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_substitutions = {"version": release}
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
nitpicky = True
nitpick_ignore_regex = [
    # Documented elsewhere: Python's names, Procrastinate's, pluggy's and SQLAlchemy's.
    ("py:.*", r"(collections|contextlib|datetime|json|sys|procrastinate|pluggy|sqlalchemy)\..*"),
    ("py:.*", "InMemoryConnector|PsycopgConnector|PluginManager.*|Job"),
    # What a signature is written with: type variables and aliases, and types that are no public names.
    ("py:class", r".*\.[CT]|(wire\.)?(Dumps|Loads|OutsideMode|Rows|State|Value)"),
    ("py:class", r"procrastinate_extconn\..*\.(External|RolledBack)"),
    # Parameters and attributes of what the docstring is about.
    ("py:obj", "done|run|Description.state|Listener"),
]

html_theme = "furo"
# Links to the repository and its edit pages, where pyproject.toml has its address.
if "Repository" in urls:
    html_theme_options = {
        "source_repository": urls["Repository"],
        "source_branch": "main",
        "source_directory": "docs/",
    }
html_title = f"{project} {release}"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
copybutton_exclude = ".linenos, .gp, .go"


class ContractClauses(SphinxDirective):
    """The clauses of the contract kit, by name, from their docstrings."""

    def run(self):
        from procrastinate_extconn.testing.contract import clauses

        listed = nodes.definition_list()
        for name, sentence in clauses().items():
            parts = re.split("`+", sentence)  # every second one is code
            words = [
                nodes.literal("", one) if n % 2 else nodes.Text(one) for n, one in enumerate(parts)
            ]
            paragraph = nodes.paragraph("", "", *words)
            listed += nodes.definition_list_item(
                "", nodes.term("", "", nodes.literal("", name)), nodes.definition("", paragraph)
            )
        return [listed]


def setup(app):
    app.add_directive("contract-clauses", ContractClauses)
