"""Small corrections to the pages that the Jupyter Book theme makes, and what only this book adds to them."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from sphinx.application import Sphinx
from sphinx.config import Config

LOST = "404"  # where a web server sends those who follow a dead link; sphinx-notfound-page makes it
PREVIEW = "00_quickstart"  # the chapter whose opening picture stands for the book


def site_url(repository: str) -> str:
    """Where GitHub Pages serves the book of a repository, ending in "/"; empty where the repository is elsewhere."""
    found = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+?)(?:\.git)?/?", repository)
    if not found:
        return ""
    host = f"{found[1].lower()}.github.io"
    return f"https://{host}/" if found[2].lower() == host else f"https://{host}/{found[2]}/"


def know_the_site(app: Sphinx, config: Config) -> None:
    """Tell the extensions that write whole addresses what these begin with; ``html_baseurl`` set by hand goes first."""
    site = config.html_baseurl or site_url(config.html_theme_options.get("repository_url", ""))
    config["html_baseurl"] = config["ogp_site_url"] = site
    config["ogp_site_name"] = config.html_title
    config["notfound_urls_prefix"] = urlsplit(site).path or "/"
    if not site:
        config["suppress_warnings"] = [*config.suppress_warnings, "sitemap"]  # there is nothing to list


def drop_thebe(context: dict[str, Any]) -> None:
    """Leave out the scripts of sphinx-thebe: no kernel stands behind a page, and they raise errors."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe" not in str(getattr(script, "filename", "")).lower()
        and "THEBE_JS_URL" not in str(getattr(script, "attributes", {}).get("body", ""))
    ]


def drop_unused_mathjax(app: Sphinx, page: str, context: dict[str, Any]) -> None:
    """Load MathJax only where there is math; Sphinx loads it on the parents of such pages, too."""
    if not app.env.domaindata["math"]["has_equations"].get(page):
        context["script_files"] = [
            script
            for script in context["script_files"]
            if not str(getattr(script, "filename", "")).endswith(app.config.mathjax_path)
        ]


def edit_the_source(buttons: list[dict[str, Any]]) -> None:
    """Let the edit button of a chapter lead to its ``.py`` file, from which the notebook is made."""
    for button in buttons:
        edit_the_source(button.get("buttons", []))
        if button.get("label") == "source-edit-button":
            button["url"] = re.sub(r"\.ipynb$", ".py", button["url"])


def offer_the_script(page: str, buttons: list[dict[str, Any]]) -> None:
    """Beside the download of a chapter's notebook: the script it is made from, and a copy without solutions."""
    if not page.startswith("notebooks/"):
        return
    for group in buttons:
        for place, button in enumerate(group.get("buttons", [])):
            if button.get("label") == "download-source-button":
                url, tooltip = re.sub(r"\.ipynb$", ".py", button["url"]), "Download the chapter as a Python script"
                script = {**button, "url": url, "text": ".py", "tooltip": tooltip, "label": "download-script-button"}
                url, tooltip = button["url"].replace(".ipynb", ".exercises.ipynb"), "Download it without solutions"
                class_copy = {**script, "url": url, "text": "no solutions", "tooltip": tooltip}
                group["buttons"][place + 1 : place + 1] = [script, class_copy | {"label": "download-exercises-button"}]
                return


def say_how_it_was_run(app: Sphinx, page: str, context: dict[str, Any]) -> None:
    """At the foot of a chapter: which code computed it, when, where and in what time (see ``book/execute.py``)."""
    run = json.loads((context.get("meta") or {}).get("book_run", "{}"))
    if not run:
        return
    parts = (
        f"commit {run['commit']}",
        run["date"],
        run["device"],
        "Python {python}, PyTorch {torch}, caml_core {caml_core}".format(**run["versions"]),
        f"profile {run['profile']}",
        f"{'with' if run['data'] else 'without'} a folder of datasets (CAML_DATA)",
        f"{run['seconds']} s",
    )
    text = "How this was run: " + html.escape(" · ".join(parts)) + "."
    for name, said in (("notation", "Symbols"), ("glossary", "Words")):
        if f"book/{name}" in app.env.found_docs:
            text += f' {said} are in the <a href="{context["pathto"](f"book/{name}")}">{name}</a>.'
    context["body"] += f'\n<footer><p class="how-this-was-run">{text}</p></footer>\n'


def opening(app: Sphinx, page: str) -> str:
    """The picture that opens a chapter, or the book, below the pages' ``_static``; empty where none was drawn."""
    name = f"openings/{PurePosixPath(page).name if page.startswith('notebooks/') else PREVIEW}"
    return name if Path(app.srcdir, "book", "static", f"{name}.png").exists() else ""


def picture_for_previews(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """What stands for a page where its address is shared."""
    if doctree and (picture := opening(app, page)):
        shown = {"og:image": f"_static/{picture}.png", "og:image:alt": f"The opening picture of: {context['title']}"}
        context["meta"] = {**(context.get("meta") or {}), **shown}
        context["metatags"] += '<meta name="twitter:card" content="summary_large_image" />\n'


def open_the_book(app: Sphinx, page: str, context: dict[str, Any]) -> None:
    """On the first page, hide the opening picture where none was drawn."""
    if page == app.config.root_doc and not opening(app, page):
        context["body"] = re.sub(r'<figure class="opening">.*?</figure>', "", context["body"], flags=re.DOTALL)


def correct_page(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    drop_thebe(context)
    drop_unused_mathjax(app, page, context)
    edit_the_source(context.get("header_buttons", []))
    offer_the_script(page, context.get("header_buttons", []))
    say_how_it_was_run(app, page, context)
    open_the_book(app, page, context)
    if page == LOST:
        context["content_root"] = app.config.notfound_urls_prefix  # for the search box
        context["pageurl"] = None


def finish_the_folder(app: Sphinx, exception: Exception | None) -> None:
    """Lead from the site's address to the first page."""
    if exception or app.builder.format != "html":
        return
    first = f"{app.config.root_doc}.html"
    tags = re.findall(r'<meta (?:property="og:|name="twitter:)[^>]*>', Path(app.outdir, first).read_text("utf-8"))
    title = html.escape(app.config.html_title)
    Path(app.outdir, "index.html").write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        + "\n".join([f'<meta http-equiv="refresh" content="0; url={first}">', *tags])
        + f'\n</head><body><a href="{first}">{title}</a></body></html>\n',
        "utf-8",
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", know_the_site, priority=400)
    app.connect("html-page-context", picture_for_previews, priority=400)
    app.connect("html-page-context", correct_page, priority=900)
    app.connect("build-finished", finish_the_folder)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
