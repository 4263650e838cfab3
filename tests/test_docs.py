"""The documentation tells the truth: commands and options exist, Python blocks run, links lead somewhere."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
PAGES = [page for page in PAGES if not {"_build", "generated"} & set(page.parts)]
FENCE = re.compile(r"(?:<!-- not run: (?P<excuse>[^>]+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```", re.M | re.S)
INLINE = re.compile(r"`(cryoscan [a-z-][^`\n]*)`")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shell_lines(text: str) -> Iterator[str]:
    """Commands of a page: fenced shell blocks, with continued lines joined, and inline `cryoscan …`."""
    for block in FENCE.finditer(text):
        if block["language"] in {"sh", "shell", "bash", "console"}:
            yield from block["text"].replace("\\\n", " ").splitlines()
    yield from INLINE.findall(text)


def mistakes(line: str, commands: dict[str, Any]) -> list[str]:
    """What in a shell line is no command or no option of the program; other programs are not looked at."""
    words = shlex.split(line.removeprefix("$ "), comments=True)
    words = words[next((i for i, word in enumerate(words) if "=" not in word), len(words)) :]  # VARIABLE=value
    if not words or Path(words[0]).name != "cryoscan":
        return []
    words = [word for word in words[1:] if word not in {"…", "|"}]
    if not words or words == ["--help"] or words == ["--version"]:
        return []
    groups = {" ".join(name.split()[:1]) for name in commands if " " in name}
    if words[0] in groups and words[1:] in ([], ["--help"]):
        return []
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in commands), None)
    if name is None:
        return [f"no such command: {line}"]
    known = {"--help"} | {
        spelling
        for parameter in commands[name].params
        for spelling in (*parameter.opts, *parameter.secondary_opts)
        if spelling.startswith("-")
    }
    options = [word.split("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    return [f"no option {option} in: {line}" for option in options if option not in known]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shell_blocks_name_commands_that_exist(page, commands):
    found = [wrong for line in shell_lines(page.read_text(encoding="utf-8")) for wrong in mistakes(line, commands)]
    assert not found


def test_a_wrong_command_or_option_is_noticed():
    output = SimpleNamespace(opts=["-o", "--output"], secondary_opts=[])
    commands = {"scan": SimpleNamespace(params=[output]), "datedb build": SimpleNamespace(params=[])}
    text = "```sh\ncryoscan scan a.mrc \\\n  --wrong 3\n```\n`cryoscan guess`, `cryoscan scan -o x`, `cryoscan datedb`"
    found = [wrong for line in shell_lines(text) for wrong in mistakes(line, commands)]
    assert [wrong.split(":")[0] for wrong in found] == ["no option --wrong in", "no such command"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """Blocks of a page share their names; one that cannot run says why in a comment before it."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in FENCE.finditer(page.read_text(encoding="utf-8")):
        if block["language"] == "python" and not block["excuse"]:
            exec(compile(block["text"], name_of(page), "exec"), names)  # noqa: S102 - our own pages


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    links = LINK.findall(page.read_text(encoding="utf-8"))
    missing = [link for link in links if "generated/" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_say_their_language(page):
    fences = re.findall(r"^(```.*)$", page.read_text(encoding="utf-8"), re.M)
    assert len(fences) % 2 == 0
    assert not [fence for fence in fences[::2] if fence == "```"]
