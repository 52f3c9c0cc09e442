"""Look at the built pages in headless Chromium: `python -m tools.check_site docs/_build/html`.

Every page is opened twice, wide and at 400 pixels. Reported are: a script that fails, a file that is missing, a request
to another site, a formula that is not drawn, a link or an anchor that leads nowhere, a page wider than a narrow screen,
and a search that finds nothing. Needs playwright and a Chromium: Debian's, or the one that `playwright install
chromium` fetches.
"""

import argparse
import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

NARROW, WIDE = {"width": 400, "height": 800}, {"width": 1280, "height": 900}
SEARCHED = "prox_tv1d"
# Of one page: its anchors, its links as they are written, and formulas that MathJax has not drawn or calls wrong.
LOOK = """async () => {
  const formulas = [...document.querySelectorAll('.math')].filter(e => !e.closest('code, pre'));
  if (formulas.length) { await MathJax.startup.promise; }
  const drawn = e => e.querySelector('mjx-container') && !e.querySelector('mjx-merror, [data-mjx-error]');
  const wrong = formulas.filter(e => !drawn(e));
  return {
    ids: [...document.querySelectorAll('[id], a[name]')].flatMap(e => [e.id, e.getAttribute('name')]).filter(Boolean),
    links: [...document.querySelectorAll('a[href]')].map(e => e.getAttribute('href')),
    formulas: formulas.length,
    wrong: wrong.map(e => e.textContent.slice(0, 60)),
    title: document.querySelector('h1')?.textContent ?? '',
  };
}"""
# What sticks out of a narrow screen, the outermost of each branch.
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  const clips = e => getComputedStyle(e).overflowX !== 'visible';
  const scrolls = e => e && e !== document.body && (clips(e) || scrolls(e.parentElement));
  return [document.documentElement.scrollWidth + ' px wide: ' + [...document.querySelectorAll('main *')]
    .filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement))
    .slice(0, 3).map(e => e.tagName + '.' + e.className).join(', ')];
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that does not print each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """A server that does not mind a browser which leaves a page before all of it has come."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print any other error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine."""
    handler = functools.partial(Quiet, directory=str(folder))
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def broken_links(pages: dict[str, dict[str, Any]], folder: Path) -> list[str]:
    """Links of pages to files or anchors that do not exist; other sites are not asked.

    Examples
    --------
    >>> pages = {"a.html": {"ids": ["top"], "links": ["b.html#x", "#top", "#gone", "https://a.site"]}}
    >>> pages["b.html"] = {"ids": ["x"], "links": ["a.html"]}
    >>> broken_links(pages, Path("."))
    ['a.html: no anchor #gone in a.html']
    """
    problems = []
    for name, page in pages.items():
        for link in sorted(set(page["links"])):
            target, anchor = urldefrag(urljoin("http://site/" + name, link))
            if not target.startswith("http://site/"):
                continue
            path = unquote(target.removeprefix("http://site/")) or "index.html"
            if path in pages:
                if anchor and unquote(anchor) not in pages[path]["ids"]:
                    problems.append(f"{name}: no anchor #{anchor} in {path}")
            elif not (folder / path).exists():
                problems.append(f"{name}: no file {path}")
    return problems


def look(browser: Any, root: str, folder: Path, shots: Path | None) -> list[str]:
    """Open every page, and return what is wrong."""
    problems: list[str] = []
    where = ""
    page = browser.new_page(viewport=WIDE)

    def route(route: Any) -> None:
        if route.request.url.startswith((root, "data:", "blob:")):
            route.continue_()
        else:
            problems.append(f"{where}: asks another site, {route.request.url}")
            route.abort()

    page.route("**/*", route)
    page.on("pageerror", lambda error: problems.append(f"{where}: script fails, {error}"))
    page.on("response", lambda r: problems.append(f"{where}: {r.status} for {r.url}") if r.status >= 400 else None)
    seen, formulas = {}, 0
    for path in sorted(folder.rglob("*.html")):
        where = path.relative_to(folder).as_posix()
        if where.startswith("_"):
            continue
        page.set_viewport_size(WIDE)
        page.goto(root + where, wait_until="load")
        seen[where] = found = page.evaluate(LOOK)
        formulas += found["formulas"]
        problems += [f"{where}: formula not drawn, {text!r}" for text in found["wrong"]]
        if not found["title"]:
            problems.append(f"{where}: no title")
        if shots:
            name = where.replace("/", "_").removesuffix(".html")
            page.screenshot(path=str(shots / f"{name}_wide.png"), full_page=True)
        page.set_viewport_size(NARROW)
        problems += [f"{where}: at {NARROW['width']} px {text}" for text in page.evaluate(OVERFLOW)]
        if shots:
            page.screenshot(path=str(shots / f"{name}_narrow.png"), full_page=True)
    problems += broken_links(seen, folder)
    where = "search.html"
    page.goto(f"{root}search.html?q={SEARCHED}")
    try:
        page.wait_for_selector("#search-results li a", timeout=20_000)
    except Exception:
        problems.append(f"search.html: nothing found for {SEARCHED!r}")
    print(f"{len(seen)} pages, {formulas} formulas, {sum(len(p['links']) for p in seen.values())} links")
    return problems


def main() -> None:
    """Check the pages of a folder, and fail if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the pages, as `nox -s docs` builds them")
    parser.add_argument("--shots", type=Path, help="folder for a picture of every page, wide and narrow")
    options = parser.parse_args()
    if not (options.folder / "index.html").exists():
        sys.exit(f"folder: expected built pages in {options.folder}; run `nox -s docs` first")
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import sync_playwright

    with serve(options.folder.resolve()) as root, sync_playwright() as play:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        problems = look(browser, root, options.folder.resolve(), options.shots)
        browser.close()
    print(*problems, sep="\n")
    sys.exit(f"{len(problems)} problems" if problems else 0)


if __name__ == "__main__":
    main()
