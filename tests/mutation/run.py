"""Change one thing at a time in the modules that produce the numbers, and see whether a test fails.

    python tests/mutation/run.py                     # all of MODULES; about half an hour of one core
    python tests/mutation/run.py losses metrics      # some
    python tests/mutation/run.py pooling --jobs 2 --list

The changes are mutmut's (``pip install mutmut``): an operator for its opposite, a number plus 1, an argument left out
or None, a condition forced either way, and so on. mutmut itself skips decorated functions, such as farthest point
sampling, so its operators are used here without its runner. A child process is forked for each change, after torch is
imported, and runs the module's own fast tests until one fails. Texts and annotations are not changed.

Each line on stdout is a change that no test noticed: its file, line, the text before and the text after. Changes in
``equivalent.txt``, with the reason why nobody could notice them, are counted apart. The exit code is 1 if others are
left.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import difflib
import gc
import importlib
import importlib.abc
import importlib.util
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import libcst
from libcst import matchers
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
# Name -> the module, and the tests that a change in it must fail.
MODULES = {
    "pooling": (
        "hcast_zoo.network.graph_pooling",
        ["tests/network/test_graph_pooling.py", "tests/network/test_model.py"],
    ),
    "taxonomy": ("hcast_zoo.taxonomy.tree", ["tests/taxonomy/test_tree.py"]),
    "decode": ("hcast_zoo.taxonomy.decode", ["tests/taxonomy/test_decode.py", "tests/taxonomy/test_subtree.py"]),
    "losses": ("hcast_zoo.training.losses", ["tests/training/test_losses.py"]),
    "metrics": ("hcast_zoo.evaluation.metrics", ["tests/evaluation/test_metrics.py"]),
}
TIMEOUT_S = 60  # a change may make a loop endless; six times as long as the unchanged tests, if that is longer
OPERATORS = [
    (kind, operator) for kind, operator in mutators.mutation_operators if operator is not mutators.operator_string
]
# These do not change what runs, or are texts.
SKIPPED = (libcst.Annotation, libcst.Decorator, libcst.BaseString)


class Mutant(NamedTuple):
    """One changed source; ``before`` and ``after`` are the lines that differ, stripped."""

    module: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{_path(self.module).relative_to(ROOT)}:{self.line}: {self.before}  ->  {self.after}"


class _Collector(libcst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self):
        self.changes: list[tuple[int, libcst.CSTNode, libcst.CSTNode]] = []

    def on_visit(self, node: libcst.CSTNode) -> bool:
        if isinstance(node, SKIPPED):
            return False
        for kind, operator in OPERATORS:
            if isinstance(node, kind) and not _is_last_dimension(node, operator):
                line = self.get_metadata(PositionProvider, node).start.line
                self.changes.extend((line, node, changed) for changed in operator(node))
        return True


def _is_last_dimension(node: libcst.CSTNode, operator: Callable) -> bool:
    """Tell whether this is -1 about to become +1: the same dimension of a matrix (-2 is tried as well)."""
    return operator is mutators.operator_swap_op and matchers.matches(
        node, matchers.UnaryOperation(matchers.Minus(), matchers.Integer("1"))
    )


def _path(module: str) -> Path:
    return ROOT / f"{MODULES[module][0].replace('.', '/')}.py"


def mutants(module: str) -> list[Mutant]:
    """Return every change of a module that compiles, in the order of its lines."""
    source = _path(module).read_text()
    wrapper = MetadataWrapper(libcst.parse_module(source))
    collector = _Collector()
    wrapper.visit(collector)
    changes = {}
    for line, node, changed in collector.changes:
        text = wrapper.module.deep_replace(node, changed).code
        try:
            compile(text, module, "exec")
        except SyntaxError:
            continue
        diff = [d for d in difflib.ndiff(source.splitlines(), text.splitlines()) if d[:2] in ("- ", "+ ")]
        before, after = (" ".join(d[2:].strip() for d in diff if d[0] == sign) for sign in "-+")
        changes.setdefault(text, Mutant(module, line, before, after, text))
    changes.pop(source, None)
    return sorted(changes.values(), key=lambda m: m.line)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Give the changed source wherever the module is imported."""

    def __init__(self, mutant: Mutant):
        self.name, self.source = MODULES[mutant.module][0], mutant.source
        self.path = str(_path(mutant.module))

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_filename(self, name):
        return self.path

    def get_data(self, path):
        return self.source.encode()


def run_tests(module: str) -> int:
    """Run the fast tests of a module in this process, silently; return pytest's exit code."""
    import pytest

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    # The last two collect garbage, which takes longer than the tests.
    left_out = ("cacheprovider", "unraisableexception", "threadexception")
    less = [word for name in left_out for word in ("-p", f"no:{name}")]
    return pytest.main(["-x", "-q", "--tb=no", "-m", "not slow", *less, *MODULES[module][1]])


def survives(mutant: Mutant, timeout_s: int) -> bool:
    """Run the module's tests on a change in a forked process; return whether all pass in time."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(timeout_s)
            sys.meta_path.insert(0, _Finder(mutant))
            os._exit(0 if run_tests(mutant.module) == 0 else 1)
        finally:  # the child may never continue as if it were the parent
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def preload(module: str) -> int:
    """Import what the tests of a module import, once for all children, but nothing of hcast_zoo and no test.

    Returns:
        How many seconds to give the tests on a change, by how long they took without any.

    Raises:
        SystemExit: if the tests fail without any change.
    """
    read, write = os.pipe()
    start = time.monotonic()
    if os.fork() == 0:
        try:
            code = run_tests(module)
            with os.fdopen(write, "w") as pipe:
                pipe.write("\n".join([str(int(code)), *sys.modules]))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        code, *names = pipe.read().split("\n")
    os.wait()
    timeout_s = max(TIMEOUT_S, int(6 * (time.monotonic() - start)))
    if code != "0":
        raise SystemExit(f"the tests of {module} fail without any change: {' '.join(MODULES[module][1])}")
    for name in names:
        if name.split(".")[0] not in ("hcast_zoo", "tests", "conftest", "__main__", ""):
            with contextlib.suppress(ImportError):  # some modules are not files
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that a child's collections touch, and copy, nothing
    return timeout_s


def equivalents() -> set[tuple[str, str, str]]:
    """Return (module, before, after) of the changes that cannot be noticed; a reason stands above each group."""
    lines = (line for line in EQUIVALENT.read_text().splitlines() if line and not line.startswith("#"))
    rows = [(line.split(": ", 1)[0], *line.split(": ", 1)[1].split("  ->  ")) for line in lines]
    return {(module, before, after) for module, before, after in rows}


def main() -> int:
    """Run; return 1 if a change that could be noticed was not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"{', '.join(MODULES)} (all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print the changes and run nothing")
    args = parser.parse_args()
    if unknown := set(args.modules) - set(MODULES):
        parser.error(f"expected modules out of {', '.join(MODULES)}, got {', '.join(sorted(unknown))}")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    known, left = equivalents(), 0
    for module in args.modules or MODULES:
        changes, start = mutants(module), time.monotonic()
        if args.list:
            print(*changes, sep="\n")
            continue
        timeout_s = preload(module)
        counts = collections.Counter()
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            for mutant, alive in zip(changes, pool.map(survives, changes, itertools.repeat(timeout_s))):
                kind = "noticed"
                if alive:
                    kind = "equivalent" if (mutant.module, mutant.before, mutant.after) in known else "not noticed"
                counts[kind] += 1
                if kind == "not noticed":
                    print(mutant, flush=True)
        left += counts["not noticed"]
        print(
            f"{module}: {len(changes)} changes, {counts['noticed']} noticed, {counts['equivalent']} equivalent, "
            f"{counts['not noticed']} not noticed ({time.monotonic() - start:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
