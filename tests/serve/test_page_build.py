"""The page as it is committed: made from its sources, and loading nothing from elsewhere."""

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jaxchat

PAGE = Path(jaxchat.__file__).parent / "serve" / "page"
SOURCES = Path(__file__).parents[2] / "ui"
# ui/record.ts has the same list
TOP = (
    "index.html",
    "package-lock.json",
    "package.json",
    "record.ts",
    "tsconfig.json",
    "vite.config.ts",
)
BUILT = {path.relative_to(PAGE).as_posix(): path for path in PAGE.rglob("*") if path.is_file()}
STYLES = "\n".join(path.read_text() for name, path in BUILT.items() if name.endswith(".css"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_page_is_built_from_its_sources():
    inside = [
        path.relative_to(SOURCES).as_posix()
        for path in (SOURCES / "src").rglob("*")
        if path.is_file()
    ]
    lines = [
        f"{sha256((SOURCES / name).read_bytes())} {name}\n" for name in sorted([*TOP, *inside])
    ]
    build = json.loads(BUILT["BUILD.json"].read_text())
    assert build["sources"] == sha256("".join(lines).encode()), (
        "ui/ was changed: cd ui && npm run build"
    )


def test_what_was_built_was_not_changed():
    build = json.loads(BUILT["BUILD.json"].read_text())
    assert build["files"] == {
        name: sha256(path.read_bytes()) for name, path in BUILT.items() if name != "BUILD.json"
    }


def test_the_page_names_only_files_of_its_own_and_has_no_script_or_style_in_it():
    problems, named = [], []

    class Reader(HTMLParser):
        open_tag = ""

        def handle_starttag(self, tag, attrs):
            given = dict(attrs)
            self.open_tag = tag
            named.extend(given[name] for name in ("src", "href") if name in given)
            problems.extend(
                (tag, name) for name in given if name.startswith("on") or name == "style"
            )

        def handle_data(self, data):
            if self.open_tag in ("script", "style") and data.strip():
                problems.append((self.open_tag, data))

    Reader().feed(BUILT["index.html"].read_text())
    assert not problems
    assert len(named) == 3
    assert all(name.removeprefix("./") in BUILT for name in named)


def test_styles_load_nothing():
    assert STYLES
    assert not re.search(r"url\(|@import|@font-face", STYLES)


def test_assets_have_their_contents_hash_in_their_names():
    assets = [name for name in BUILT if name.startswith("assets/")]
    assert {Path(name).suffix for name in assets} == {".css", ".js", ".svg"}
    assert all(re.search(r"-[\w-]{8}\.\w+$", name) for name in assets)


def test_scripts_fetch_only_relative_addresses_and_evaluate_nothing():
    (script,) = (path.read_text() for name, path in BUILT.items() if name.endswith(".js"))
    assert not re.search(r"\beval\(|new Function\(|importScripts|sourceMappingURL", script)
    ours = "".join(path.read_text() for path in (SOURCES / "src").rglob("*.ts*"))
    assert not re.search(r"""["'`](https?:)?//\w""", ours)


def test_licences_of_what_is_bundled_stand_beside_it():
    packages = json.loads((SOURCES / "package.json").read_text())["dependencies"]
    text = BUILT["THIRD_PARTY.txt"].read_text()
    for name in packages:
        assert re.search(rf"^{re.escape(name)} \d", text, re.MULTILINE), name


def test_the_lock_file_names_no_host():
    lock = json.loads((SOURCES / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert len(packages) > 10
    assert not [name for name, package in packages.items() if "resolved" in package]
    assert all("integrity" in package for package in packages.values())
