"""Hooks of mkdocs.yml: the repository's address, a page of reference per public module, links to files that are no pages."""

import os
import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
REFERENCE = [
    "internvlx_hf",
    "internvlx_hf.conversion",
    "internvlx_hf.data",
    "internvlx_hf.training",
    "internvlx_hf.cost",
    "internvlx_hf.pictures",
    "internvlx_hf.hub",
    "internvlx_hf.evaluation",
    "internvlx_hf.tuning",
    "internvlx_hf.serving",
    "internvlx_hf.quantization",
]
# a function with the name of its module, which mkdocstrings takes for the module
HIDDEN_BY_MODULE = {"internvlx_hf.hub": "internvlx_hf.hub.model_card.model_card"}
LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^\]]*\])\((?!https?:|#)(?P<path>[^)#]+)(?P<anchor>#[^)]*)?\)")


def project_urls() -> dict[str, str]:
    """Label and address of each line of `project_urls` in setup.cfg."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["metadata"]["project_urls"].strip().splitlines()
    return {label.strip(): url.strip() for label, url in (line.split("=", 1) for line in lines)}


def on_config(config):
    urls = project_urls()
    config.site_url = urls["Documentation"]
    config.nav += [
        {"Reference": [{name: f"reference/{name}.md"} for name in REFERENCE]},
        {"Changes": "changes.md"},
        {"Repository": urls["Source"]},
    ]
    return config


def on_files(files, config):
    """Add the reference, the changes, and the images outside docs/ that a page shows."""
    from mkdocs.structure.files import File

    contents = {f"reference/{name}.md": f"::: {name}\n" for name in REFERENCE}
    for name, hidden in HIDDEN_BY_MODULE.items():
        contents[f"reference/{name}.md"] += (
            f"\n::: {hidden}\n    options: {{heading: {name}.model_card, heading_level: 2}}\n"
        )
    contents["changes.md"] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for page in files.documentation_pages():
        for link in LINK.finditer(page.content_string):
            path = _in_repository(page, link)
            if link["image"] and not path.startswith("docs/") and not files.get_file_from_path(path):
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for path, content in contents.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown, page, files, **_):
    """Link to images where `on_files` has put them, and to files that the site lacks on the repository's pages."""
    source = project_urls()["Source"]

    def adapted(link: re.Match) -> str:
        path = _in_repository(page.file, link)
        if link["image"] and not path.startswith("docs/"):
            return f"!{link['text']}({path})"
        in_site = files.get_file_from_path(path.removeprefix("docs/"))
        if not (ROOT / path).exists() or (in_site and in_site.inclusion.is_included()):
            return link[0]  # MkDocs converts it, or warns
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{link['text']}({source}/{kind}/main/{path}{link['anchor'] or ''})"

    return LINK.sub(adapted, markdown)


def on_page_content(html, page, **_):
    """Take the marks out of parameter types in transformers' form, `int`, *optional*, which are shown as code."""
    if not page.file.src_uri.startswith("reference/"):
        return html
    return re.sub(
        r"(<code>)([^<]*`[^<]*)(</code>)", lambda code: code[1] + re.sub("[`*]", "", code[2]) + code[3], html
    )


def _in_repository(file, link: re.Match) -> str:
    """The file that a link names, from the repository's root."""
    return os.path.normpath(os.path.join("docs", os.path.dirname(file.src_uri), link["path"]))
