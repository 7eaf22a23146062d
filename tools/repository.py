"""Write the repository's address where it belongs: pyproject.toml and the set-up cell of every chapter.

Called by ``make repository URL=https://github.com/OWNER/NAME``; an empty URL takes the address out again.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.compile(r"https://[A-Za-z0-9.-]+\.[A-Za-z]{2,}(/[A-Za-z0-9._~-]+){2,}")
URLS = re.compile(r'^(# )?\[project\.urls\]\n(# )?Repository = ".*"$', re.MULTILINE)
LINE = re.compile(r'^REPOSITORY = ".*?"', re.MULTILINE)


def main(url: str) -> str:
    """Set the address everywhere, and return one sentence on what was done."""
    url = url.strip().removesuffix("/").removesuffix(".git")
    if url and not ADDRESS.fullmatch(url):
        sys.exit(f"{url!r} is not the address of a repository: it must look like https://github.com/OWNER/NAME.")
    settings = ROOT / "pyproject.toml"
    text = settings.read_text(encoding="utf-8")
    mark = "" if url else "# "
    text, count = URLS.subn(f'{mark}[project.urls]\n{mark}Repository = "{url}"', text)
    if count != 1 or tomllib.loads(text)["project"].get("urls", {}).get("Repository", "") != url:
        sys.exit("pyproject.toml has no [project.urls] with one line 'Repository = \"\"' to change.")
    settings.write_text(text, encoding="utf-8")

    changed = 0
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for cell in cells:
            source = "".join(cell["source"])
            if LINE.search(source):
                cell["source"] = LINE.sub(f'REPOSITORY = "{url}"', source, count=1).splitlines(keepends=True)
                changed += 1
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    where = url or "nowhere"
    return f"The repository is now {where}: pyproject.toml and {changed} set-up cells say so. Run `make book` next."


if __name__ == "__main__":
    print(main(sys.argv[1] if len(sys.argv) > 1 else ""))
