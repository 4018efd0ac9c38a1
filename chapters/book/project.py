"""The project around the book: where its repository is on the web, and its README as a page."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
# git@host:me/it.git, ssh://git@host:22/me/it, https://name:key@host/me/it
REMOTE = re.compile(r"(?:(?:https?|ssh)://(?:[^@/]+@)?|[\w-]+@)(?P<host>[\w-]+(?:\.[\w-]+)+)(?::\d+/|[:/])(?P<path>.+?)(?:\.git)?/?")


def web_address(remote: str) -> str | None:
    """Where a git remote is on the web, without any name or key in it; None for a folder, or a host without a public name."""
    found = REMOTE.fullmatch(remote.strip())
    return f"https://{found['host']}/{found['path']}" if found else None


def repository(root: Path = ROOT) -> str:
    """The words "the repository", as a link where pyproject.toml names its address or git has a remote `origin` on the web."""
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    address = urls.get("Repository")
    if address is None and shutil.which("git"):
        asked = subprocess.run(["git", "-C", str(root), "remote", "get-url", "origin"], capture_output=True, text=True,
                               encoding="utf-8", check=False)
        address = web_address(asked.stdout) if asked.returncode == 0 else None
    return f"[the repository]({address})" if address else "the repository"


def readme_page(name: str, chapters: list[Path]) -> str:
    """A README as a page of the book, whose links lead to the book's pages. chapters: those that the book has."""
    files = {chapter.name for chapter in chapters}
    text = (ROOT / name).read_text(encoding="utf-8")
    for here, there in (("chapters/book/static/", "static/"), ("](README.md)", "](readme.md)"),
                        ("](README.zh-CN.md)", "](readme-zh.md)"), ("[LICENSE](LICENSE)", "LICENSE")):
        text = text.replace(here, there)
    return re.sub(r"\[([^]]+)\]\(chapters/(\w+\.ipynb)\)", lambda m: f"[{m[1]}]({m[2]})" if m[2] in files else m[1], text)
