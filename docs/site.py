"""The pages of `make docs`, beside docs/: files of the repository that are read there and on GitHub alike.

Links in docs/ name such a file by its path (`../CONTRIBUTING.md`), so that they work on GitHub; here each is
turned into the link to its page.
"""

from __future__ import annotations

import re
from os.path import normpath, relpath
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?\)")
INTERVAL = re.compile(r"(?<=\d) \[([-+.\d]+), ([-+.\d]+)\]")


def _elsewhere() -> dict[str, str]:
    """Path in the repository -> path on the site."""
    found = {f"{name}.md": f"{name.lower()}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")}
    for help_page in ROOT.glob("web/docs/*/en.md"):
        found[help_page.relative_to(ROOT).as_posix()] = f"nodes/{help_page.parent.name}.md"
    for picture in ROOT.glob("workflows/*.jpg"):
        found[picture.relative_to(ROOT).as_posix()] = f"workflows/{picture.name}"
    return found


ELSEWHERE = _elsewhere()
HOME = {site: path for path, site in ELSEWHERE.items()}


def on_files(files, config):
    for path, site in ELSEWHERE.items():
        if site.endswith(".md"):
            files.append(File.generated(config, site, content=(ROOT / path).read_text(encoding="utf-8")))
        else:
            files.append(File.generated(config, site, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    source = HOME.get(here, f"docs/{here}")

    def turned(link: re.Match[str]) -> str:
        path = normpath(PurePosixPath(source).parent / link[2]).replace("\\", "/")
        site = ELSEWHERE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if site is None:  # mkdocs then says that there is no such page
            return link[0]
        return f"{link[1]}{relpath(site, PurePosixPath(here).parent).replace(chr(92), '/')}{link[3] or ''})"

    return LINK.sub(turned, markdown)


def on_page_content(html, page, config, files):
    """A number and its interval stay on one line."""
    return INTERVAL.sub(r"&nbsp;[\1,&nbsp;\2]", html)
