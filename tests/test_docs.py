"""What is written for people: links lead somewhere, paths exist, quoted commands are the program's own.

No network, no process: links are looked up in the tree, commands in the command line's own parser. A test
lists all that it finds.
"""

import re
import shlex
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "web/docs/*/en.md",
        "backend/**/README.md",
        "tests/data/*/README.md",
    )
    for path in ROOT.glob(pattern)
)
# It tells what was called otherwise.
OF_TODAY = [path for path in PAGES if path.name != "CHANGELOG.md"]

FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^(?: {4}|\t).*\n)+", re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "backend|nodes|tests|docs|web|workflows|locales|\\.github|\\.ci"
PATH = rf"(?:{FOLDERS})/[\w./*…-]+[\w/*]"
PLACEHOLDER = re.compile(r"[A-Z]{3,}(?=[/._]|$)|…")  # NAME.json, LANGUAGE/nodeDefs.json
CALL = re.compile(r"(?:\w+=\S+ |torchrun .*-m |python \S+ -m )*(?:\.venv/bin/)?reprise( .*|$)")
ITEM = re.compile(r"(?:[-*]|\d+\.) ")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """Of a page's headings, where GitHub and mkdocs agree on them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", read(path)), re.MULTILINE):
        text = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
        github, mkdocs = text.replace(" ", "-"), re.sub(r"[-\s]+", "-", text)
        if github == mkdocs:
            found.add(github)
    return found


def code_of(text: str) -> list[str]:
    """The lines of code in a page, continued ones joined, and its code spans."""
    blocks = [block.group() for pattern in (FENCE, INDENTED) for block in pattern.finditer(text)]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + [span.replace("\n", " ") for span in SPAN.findall(FENCE.sub("", text))]


def test_links_lead_somewhere():
    lost = []
    for page in PAGES:
        for link in LINK.findall(FENCE.sub("", read(page))):
            if re.match(r"\w+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            there = target.is_relative_to(ROOT) and target.is_file()
            if not there or (anchor and anchor not in anchors(target)):
                lost.append(f"{named(page)}: {link}")
    assert not lost, "\n".join(lost)


def test_lists_begin_after_an_empty_line():
    """Without one mkdocs takes them for a part of the paragraph."""
    joined = []
    for page in PAGES:
        before = ""
        for line in FENCE.sub("", read(page)).splitlines():
            if ITEM.match(line) and before.strip() and not ITEM.match(before) and before[0] not in " #|":
                joined.append(f"{named(page)}: {line}")
            before = line
    assert not joined, "\n".join(joined)


def test_paths_exist():
    lost = []
    for page in OF_TODAY:
        for code in code_of(read(page)):
            for word in re.findall(rf"(?<!\S){PATH}", code):
                if not any(ROOT.glob(PLACEHOLDER.sub("*", word).rstrip("/"))):
                    lost.append(f"{named(page)}: {word}")
            for module in re.findall(r"reprise\.(backend(?:\.\w+)+)", code):
                place = ROOT.joinpath(*module.split("."))
                if not place.is_dir() and not place.with_suffix(".py").is_file():
                    lost.append(f"{named(page)}: reprise.{module}")
    assert not lost, "\n".join(lost)


def test_names_of_the_glossary_are_in_the_code():
    sources = "\n".join(read(path) for room in ("backend", "nodes") for path in (ROOT / room).rglob("*.py"))
    names = re.findall(r"`(\w+)`", read(ROOT / "docs" / "glossary.md"))
    assert names and not [name for name in names if not re.search(rf"\b{name}\b", sources)]


def test_targets_are_in_the_makefile():
    known = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    called = {
        (named(page), target)
        for page in OF_TODAY
        for code in code_of(read(page))
        for target in re.findall(r"^make ([a-z-]+)", code)
    }
    assert called and not [one for one in sorted(called) if one[1] not in known]


def test_commands_are_the_programs_own():
    from reprise.backend.cli.main import app

    program, wrong = typer.main.get_command(app), []
    for page in OF_TODAY:
        for code in code_of(read(page)):
            if called := CALL.match(code):
                words = shlex.split(called[1], comments=True)
                if words[-1:] == ["…"]:  # and so on
                    words.pop()
                if fault := fault_of(program, words):
                    wrong.append(f"{named(page)}: {code}: {fault}")
    assert not wrong, "\n".join(wrong)


def test_faults_of_commands_are_found():
    from reprise.backend.cli.main import app

    program = typer.main.get_command(app)
    for words in (
        ["rendre"],
        ["render", "words", "--best-off", "3"],
        ["render", "--seed"],
        ["models", "all"],
    ):
        assert fault_of(program, words)
    assert not fault_of(program, ["render", "words", "--best-of", "3"])


def fault_of(command, words: list[str]) -> str:
    """Why the program would not take these words; empty where it would. In the place of a subcommand METHOD
    or NAME stands for any."""
    while subcommands := getattr(command, "commands", None):
        if not words or words[0].startswith("-"):
            break
        name = words[0] if words[0] in subcommands or not words[0].isupper() else next(iter(subcommands))
        if name not in subcommands:
            return f"{name} is none of {', '.join(subcommands)}"
        command, words = subcommands[name], words[1:]
    context = command.context_class(command, info_name="reprise")
    try:
        left = command.make_parser(context).parse_args(args=list(words))[1]
    except Exception as error:  # of click, which typer brings along
        return str(error)
    return f"{' '.join(left)} is too much" if left and not subcommands else ""
