"""What the documentation site has besides docs/: pages from elsewhere in the repository, and the help of each command.

mkdocs.yml names this file as a hook. Links are written as they work in the repository, and are turned to the site's.
"""

import io
import os
import posixpath
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from lit_extract.cli import COMMANDS, main
from lit_extract.commands.spelling import PARTS, known_classes

REPOSITORY = Path(__file__).parents[1]
FROM_ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "derivatives/captions/README.md": "caption-files.md",
    "lit_extract/datasets/demo_images/LICENSES.md": "photographs.md",
    "lit_extract/modules/prompts.yml": "prompts.yml",
    "models.yml": "models.yml",
    **{f"benchmarks/results/{svg.name}": f"images/{svg.name}" for svg in REPOSITORY.glob("benchmarks/results/*.svg")},
}
HELP_WIDTH = "78"

_LINK = re.compile(r"(?P<before>\]\(|src(?:set)?=\")(?P<path>[^)\s:#\"]+)(?=[)#\"])")


def on_config(config: MkDocsConfig) -> None:
    """List the commands in the navigation."""
    (reference,) = (section["Reference"] for section in config.nav or [] if "Reference" in section)
    (commands,) = (entry["Commands"] for entry in reference if "Commands" in entry)
    commands += [{name: f"commands/{name}.md"} for name in COMMANDS]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what is not in docs/."""
    for source, path in FROM_ELSEWHERE.items():
        files.append(File.generated(config, path, abs_src_path=str(REPOSITORY / source)))
    for path, text in pages_of_commands().items():
        files.append(File.generated(config, path, content=text))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links between files of the repository to those of the site; show code that tests don't run as other code."""
    return links_of_site(markdown, page.file.src_uri).replace("```python notest\n", "```python\n")


def on_page_content(html: str, **_: object) -> str:
    """Leave out the roles of names in docstrings, such as :meth:, which the reference would show."""
    return re.sub(r":(?:attr|class|func|meth|mod):(?=<code>)", "", html)


def links_of_site(markdown: str, path: str) -> str:
    """Return the text of a page with its links as the site has them.

    Args:
        markdown: The page, with links as they work in the repository.
        path: The page's path on the site, such as index.md of the README.
    """
    source = next((source for source, site in FROM_ELSEWHERE.items() if site == path), f"docs/{path}")

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        on_site = FROM_ELSEWHERE.get(target, target.removeprefix("docs/"))
        return link["before"] + posixpath.relpath(on_site, posixpath.dirname(path) or ".")

    return _LINK.sub(turned, markdown)


def pages_of_commands() -> dict[str, str]:
    """Return a page for each command, with what its ``--help`` prints, and one that lists them."""
    rows = [f"| [`{name}`](commands/{name}.md) | {summary} |" for name, summary in COMMANDS.items()]
    index = ["# Commands", "| `lit-extract …` | |\n| --- | --- |\n" + "\n".join(rows)]
    pages = {"commands.md": "\n\n".join(index)}
    for name in COMMANDS:
        parts = [f"# lit-extract {name}", _block(_help(name, "--help"))]
        if name == "predict":
            for part in PARTS:
                for known in known_classes(part):
                    parts += [f"## {known}", _block(_help(name, f"--{part}.help", known))]
        pages[f"commands/{name}.md"] = "\n\n".join(parts)
    return pages


def _block(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def _help(*args: str) -> str:
    printed = io.StringIO()
    os.environ["COLUMNS"] = HELP_WIDTH
    with redirect_stdout(printed), suppress(SystemExit):
        main(args)
    return printed.getvalue()
