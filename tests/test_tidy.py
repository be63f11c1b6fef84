"""Does the code keep its form: the order of the rooms, pure modules, sizes, names, queries and files?"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("feeds", "worker")
PURE = {
    "feeds.identifiers",
    "feeds.movement",
    "feeds.page",
    "feeds.times",
    "worker.events",
    "worker.ledger.dated_events",
    "worker.ledger.grants",
    "worker.ledger.hash_chain",
    "worker.ledger.organisation",
    "worker.ledger.posting",
}
PURE_LIBRARIES = {"pydantic", "typeid"}
STANDARD_LIBRARY_OF_VALUES = {
    "bisect", "collections", "dataclasses", "datetime", "enum", "functools", "hashlib", "heapq", "itertools",
    "json", "math", "operator", "re", "types", "typing", "uuid", "zlib",
}  # fmt: skip
"""No clock, randomness, file or network. `datetime` and `uuid` have some of these: IMPURE_CALLS forbids them by name."""
IMPURE_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "uuid6", "uuid7", "open", "getenv", "input", "print"}
CORE = {"celery", "redis", "pydantic"}
"""What producers install, apart from the dependencies of these."""
LAYERS = (
    {"worker.__main__"},
    {"worker.commands"},
    {"worker.local", "worker.doctor"},
    {"worker.tasks", "worker.producer"},
    {"worker.broker"},
    {"worker.process"},
    {"worker.audit", "worker.metrics", "worker.migrations"},
    {"worker.intake"},
    {"worker.ledger"},
    {"worker.events", "worker.settings"},
    {"feeds.endpoint"},
    {"feeds.read_through"},
    {"feeds.cached"},
    {"feeds.balance", "feeds.grants", "feeds.store"},
    {"feeds.cursor", "feeds.keys", "feeds.postgres", "feeds.schema"},
    {"feeds.page", "feeds.settings"},
    {"feeds.addresses"},
    {"feeds.database", "feeds.movement", "feeds.state"},
    {
        "feeds.background",
        "feeds.bounded_map",
        "feeds.counters",
        "feeds.identifiers",
        "feeds.queries",
        "feeds.single_flight",
        "feeds.times",
    },
)
"""The rooms and modules from the top down: each may import only from its own room and from layers below its own."""
LINES_OF_A_MODULE = 300
LINES_OF_A_FUNCTION = 45
HISTORIES = 32

MODULES = sorted(path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))
QUERIES = sorted(
    path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.sql") if not path.stem[:4].isdigit()
)
"""The `.sql` files that modules load. All others are migrations."""


def relative_name(path: Path) -> str:
    """Return the path of a file relative to the checkout."""
    return path.relative_to(CHECKOUT).as_posix()


def module_of(path: Path) -> str:
    """Return the dotted name of a module."""
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def checkout_files() -> list[Path]:
    """Return all files of the checkout that git does not ignore, tracked or not."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = [CHECKOUT / name for name in listed.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a module imports, also inside functions. `from a import b` yields `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), relative_name(path))


def definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Yield every function and class, also nested ones."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return (node for node in ast.walk(tree) if isinstance(node, kinds))


def is_module(name: str) -> bool:
    """Tell whether a dotted name is one of our modules."""
    path = CHECKOUT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def layer_of(module: str) -> tuple[int, str]:
    """Return the number of a module's layer and the name of its room."""
    [found] = {
        (number, room) for number, rooms in enumerate(LAYERS) for room in rooms if f"{module}.".startswith(f"{room}.")
    }
    return found


def test_a_module_imports_only_from_its_own_room_and_from_layers_below():
    upward = []
    for path in MODULES:
        module = module_of(path)
        if module in PACKAGES:
            continue
        layer, room = layer_of(module)
        for name in imports(parse(path)):
            if name.split(".")[0] in PACKAGES and name not in PACKAGES and is_module(name):
                other_layer, other_room = layer_of(name)
                if other_room != room and other_layer <= layer:
                    upward.append(f"{module} imports {name}")
    assert upward == []


def test_feeds_imports_neither_worker_nor_celery():
    found = {
        (relative_name(path), name)
        for path in MODULES
        if path.is_relative_to(CHECKOUT / "feeds")
        for name in imports(parse(path))
        if name.split(".")[0] in {"worker", "celery", "kombu", "billiard"}
    }
    assert found == set()


def test_feeds_can_be_imported_if_celery_is_not_installed():
    modules = [module_of(path) for path in MODULES if path.is_relative_to(CHECKOUT / "feeds")]
    done = import_without({"worker", "celery", "kombu", "billiard"}, *modules)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_imports_only_pure_modules(module):
    tree = parse(CHECKOUT.joinpath(*module.split(".")).with_suffix(".py"))
    allowed = STANDARD_LIBRARY_OF_VALUES | PURE_LIBRARIES
    ours = {name for name in imports(tree) if name.split(".")[0] in PACKAGES and is_module(name)}
    others = {name.split(".")[0] for name in imports(tree)} - set(PACKAGES)
    assert ours <= PURE
    assert others <= allowed


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_calls_nothing_that_reads_a_clock_a_file_or_randomness(module):
    tree = parse(CHECKOUT.joinpath(*module.split(".")).with_suffix(".py"))
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = {function.attr for function in called if isinstance(function, ast.Attribute)}
    names |= {function.id for function in called if isinstance(function, ast.Name)}
    assert names & IMPURE_CALLS == set()


def import_without(forbidden: set[str], *modules: str) -> subprocess.CompletedProcess[str]:
    """Import modules in a new process in which the forbidden packages are not found."""
    program = f"""
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
for name in {modules!r}:
    importlib.import_module(name)
"""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60)


def test_a_producer_needs_only_the_core_dependencies():
    installed = locked_names()
    forbidden = import_names(installed - required_by(CORE))
    assert forbidden >= {
        "psycopg", "rich", "starlette", "granian", "pydantic_settings", "typeid", "uuid_utils",
        "prometheus_client", "hiredis", "pytest",
    }  # fmt: skip
    done = import_without(forbidden, "worker.producer")
    assert done.returncode == 0, done.stderr


def locked_names() -> set[str]:
    """Return the names of all distributions in the lock file."""
    return set(re.findall(r"^([\w.-]+)==", (CHECKOUT / "requirements.lock").read_text(), flags=re.MULTILINE))


def required_by(names: set[str]) -> set[str]:
    """Return distributions and all their direct and indirect dependencies on this machine, without extras."""
    found, to_visit = set(), set(names)
    while to_visit:
        name = to_visit.pop()
        found.add(name)
        try:
            requirements = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:  # only needed on another platform or Python
            continue
        needed = (each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""}))
        to_visit |= {re.sub(r"[-_.]+", "-", each.name).lower() for each in needed} - found
    return found


def import_names(distributions: set[str]) -> set[str]:
    """Return the top-level packages that these distributions install."""
    return {
        package
        for package, owners in packages_distributions().items()
        if {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} <= distributions
    }


def test_no_module_is_longer_than_the_limit():
    sizes = {relative_name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in sizes.items() if lines > LINES_OF_A_MODULE} == {}


def test_no_function_is_longer_than_the_limit():
    sizes = {
        f"{relative_name(path)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in MODULES
        for node in definitions(parse(path))
        if not isinstance(node, ast.ClassDef)
    }
    assert {name: lines for name, lines in sizes.items() if lines > LINES_OF_A_FUNCTION} == {}


def test_every_public_module_class_and_function_has_a_docstring():
    assert list(chain.from_iterable(undocumented(path) for path in MODULES)) == []


def undocumented(path: Path) -> Iterator[str]:
    """Yield the public names of a module without a docstring. What is nested in a function is not public."""
    tree = parse(path)
    if not ast.get_docstring(tree) and tree.body:
        yield relative_name(path)
    to_visit: list[ast.AST] = [tree]
    while to_visit:
        for node in to_visit.pop().body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                if not ast.get_docstring(node):
                    yield f"{relative_name(path)}:{node.lineno} {node.name}"
                if isinstance(node, ast.ClassDef):
                    to_visit.append(node)


def test_no_module_has_a_name_that_says_nothing():
    empty_names = {"utils", "util", "helpers", "helper", "manager", "base", "common", "misc"}
    assert [relative_name(path) for path in MODULES if path.stem in empty_names] == []


@pytest.mark.parametrize("path", QUERIES, ids=relative_name)
def test_each_query_has_a_name_and_a_comment_and_is_used_by_the_module_beside_it(path):
    text, module = path.read_text(), parse(path.with_suffix(".py"))
    names = re.findall(r"^-- name: (.*)$", text, flags=re.MULTILINE)
    commented = re.findall(r"^-- name: (\w+)\n-- \S", text, flags=re.MULTILINE)
    words = {node.value for node in ast.walk(module) if isinstance(node, ast.Constant)}
    assert names
    assert names == commented
    assert len(names) == len(set(names))
    assert set(names) <= words
    assert set(re.findall(r'SQL\["(\w+)"\]', path.with_suffix(".py").read_text())) <= set(names)


def test_migrations_are_numbered_without_gaps():
    names = sorted(path.name for path in (CHECKOUT / "worker/migrations").glob("[0-9]*.sql"))
    assert all(re.fullmatch(rf"{number:04}_[a-z]+_[a-z_]+\.sql", name) for number, name in enumerate(names, 1))


def test_no_file_holds_a_path_of_a_machine_or_the_host_of_a_registry():
    # Split, so that this file does not hold them itself.
    hosts = (
        "py" + r"pi\.org",
        "python" + r"hosted\.org",
        "registry" + r"\.npmjs",
        "docker" + r"\.io",
        r"ghcr" + r"\.io",
    )
    folders = ("ho" + "me", "Us" + "ers", "ro" + "ot", "wo" + "rk")
    forbidden = re.compile(rf"(?:{'|'.join(hosts)})|(?<![\w.}}\])*])/(?:{'|'.join(folders)})/[\w.]")
    found = [
        f"{relative_name(path)}: {match.group()}"
        for path in checkout_files()
        for match in forbidden.finditer(path.read_bytes().decode(errors="replace"))
    ]
    assert found == []


def test_no_test_is_skipped_or_expected_to_fail():
    words = "|".join(("sk" + "ip", "xf" + "ail", "import" + "orskip", "sk" + "ipif"))
    pattern = re.compile(rf"\b(?:mark|pytest|unittest)\.(?:{words})\b")
    found = [
        f"{relative_name(path)}: {match.group()}"
        for path in (CHECKOUT / "tests").rglob("*.py")
        for match in pattern.finditer(path.read_text())
    ]
    assert found == []


def test_all_histories_exist_and_have_the_right_form():
    histories = json.loads((CHECKOUT / "tests/vectors/posting.json").read_text())
    assert len({history["name"] for history in histories}) == len(histories) == HISTORIES
    assert {tuple(history) for history in histories} == {("name", "expiry_grace_s", "steps", "remaining")}
    assert all(history["steps"] for history in histories)
    steps = [step for history in histories for step in history["steps"]]
    assert {frozenset(step) - {"dead"} for step in steps} == {frozenset({"now", "event", "writes"})}
