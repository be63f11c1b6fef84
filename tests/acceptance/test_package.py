"""Do the sdist and the wheel hold what an installation needs, and nothing else?

Also: is CONTRIBUTING up to date, and does GitHub accept the issue forms?
"""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.servers import CHECKOUT

PACKAGES = ("feeds", "worker")
CODE = {".py", ".sql", ".lua"}
RUN_SCRIPT = """
import sys
from importlib.metadata import entry_points

[script] = entry_points(group="console_scripts", name="usage-feeds")
sys.argv[0] = script.name
sys.exit(script.load()())
"""
IMPORT_ALL = """
import pkgutil
from importlib import import_module

for package in ("feeds", "worker"):
    for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
        print(import_module(module.name).__file__)
"""


class Built(NamedTuple):
    """The two files of a release, and the folder of the unpacked wheel."""

    sdist: Path
    wheel: Path
    installed: Path


def build(source: Path, target: str, folder: Path) -> Path:
    """Build an sdist or a wheel of `source` into `folder`, with the hatchling of the lock file: no network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    [file] = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the sdist, and the wheel from the sdist as pip does; unpack the wheel into an empty folder."""
    folder = tmp_path_factory.mktemp("package")
    sdist = build(CHECKOUT, "sdist", folder / "sdist")
    [source] = unpack(sdist, folder / "source").iterdir()
    wheel = build(source, "wheel", folder / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return Built(sdist, wheel, folder / "installed")


def unpack(sdist: Path, folder: Path) -> Path:
    """Write the files of an sdist into `folder`: `extractall(filter=...)` is missing before Python 3.11.4."""
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            assert member.isfile(), member.name
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.extractfile(member).read())
    return folder


def read_wheel(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(built: Built) -> Metadata:
    """Return the wheel's metadata, after `packaging` has checked every field."""
    [text] = [content for name, content in read_wheel(built.wheel).items() if name.endswith(".dist-info/METADATA")]
    return Metadata.from_email(text, validate=True)


def run_installed(built: Built, folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in `folder`, in a fresh process that finds the unpacked wheel and not the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(built.installed), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_wheel_holds_every_file_of_both_packages_and_nothing_else(built):
    files = [path for package in PACKAGES for path in (CHECKOUT / package).rglob("*") if path.is_file()]
    ours = {path.relative_to(CHECKOUT).as_posix() for path in files if "__pycache__" not in path.parts}
    code = {name for name in read_wheel(built.wheel) if ".dist-info/" not in name}

    assert code == ours
    assert {"feeds/py.typed", "worker/py.typed", "feeds/cached/append.lua", "worker/ledger/write.sql"} <= code
    assert [name for name in code if "test" in name] == []


def test_the_sdist_holds_what_the_wheel_is_built_from_and_nothing_else(built):
    with tarfile.open(built.sdist) as archive:
        names = {name.split("/")[1] for name in archive.getnames()}

    documents = {"CHANGELOG.md", "LICENSE", "README.md"}
    assert names == {*PACKAGES, *documents, "pyproject.toml", "PKG-INFO", ".gitignore"}


def test_the_checkout_and_the_sdist_build_the_same_wheel(built, tmp_path):
    assert read_wheel(build(CHECKOUT, "wheel", tmp_path)) == read_wheel(built.wheel)


def test_the_metadata_is_valid_and_holds_the_licence_and_the_project_links(built):
    found = metadata(built)

    assert (found.name, found.license_expression, found.license_files) == ("usage-feeds", "MIT", ["LICENSE"])
    assert found.project_urls.keys() == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert "Typing :: Typed" in found.classifiers
    assert found.description.startswith("# usage-feeds\n")


def test_every_dependency_is_used(built):
    sources = "\n".join(path.read_text() for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))
    used = set(re.findall(r'(?:^\s*(?:import|from) |find_spec\(")(\w+)', sources, flags=re.MULTILINE))
    required = {canonicalize_name(requirement.name) for requirement in metadata(built).requires_dist}
    owners = {
        canonicalize_name(owner)
        for package, distributions in packages_distributions().items()
        if package in used
        for owner in distributions
    }

    assert required - owners == set()


def test_without_extras_only_the_dependencies_of_a_producer_are_installed(built):
    requirements = [Requirement(str(required)) for required in metadata(built).requires_dist]

    assert {required.name for required in requirements if required.marker is None} == {"celery", "redis", "pydantic"}


def test_the_script_of_the_installed_wheel_lists_every_command(built, tmp_path):
    done = run_installed(built, tmp_path, RUN_SCRIPT, "--help")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: usage-feeds ")
    assert re.search(r"^ +verify ", done.stdout, flags=re.MULTILINE)


def test_every_module_of_the_installed_wheel_can_be_imported(built, tmp_path):
    done = run_installed(built, tmp_path, IMPORT_ALL)

    assert done.returncode == 0, done.stderr
    imported = done.stdout.split("\n")[:-1]
    assert len(imported) > 50
    assert [path for path in imported if not path.startswith(str(built.installed))] == []


def test_every_file_that_contributing_names_is_there():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"\b(?:worker|feeds|tests|deploy)/[\w./-]*\w", text))
    named -= {"worker/commands/NAME.py", "worker/migrations/NNNN_verb_noun.sql"}

    assert len(named) > 20
    assert {name for name in named if not (CHECKOUT / name).exists()} == set()


def test_every_name_that_contributing_shows_is_in_the_code():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    shown = set(re.findall(r"`([A-Za-z]\w+)`", text)) - {"NAME", "lifetime_s"}
    files = [path for folder in (*PACKAGES, "tests") for path in (CHECKOUT / folder).rglob("*") if path.suffix in CODE]
    words = set(re.findall(r"\w+", "\n".join(path.read_text() for path in files)))

    assert len(shown) > 10
    assert shown - words == set()


@pytest.mark.parametrize(
    "form", sorted((CHECKOUT / ".github/ISSUE_TEMPLATE").glob("*_*.yml")), ids=lambda path: path.stem
)
def test_an_issue_form_has_a_label_and_an_id_for_each_question(form):
    found = yaml.safe_load(form.read_text())
    questions = [field for field in found["body"] if field["type"] != "markdown"]

    assert found.keys() == {"name", "description", "labels", "body"}
    assert len({question["id"] for question in questions}) == len(questions)
    assert all(question["attributes"]["label"] for question in questions)
