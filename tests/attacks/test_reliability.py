"""The scripts behind docs/reliability.md find planted faults, and nothing wrong in a few inputs.

``faults.py train`` and ``publish`` take minutes; test_trainer.py and test_publish.py have shorter tests of such faults.
"""

import collections
import functools
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc are Linux's")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text()


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a script on an empty report, and returns its result and the rows it printed."""

    def call(name, *arguments):
        marks = re.findall(r"<!-- /(.*) -->", PAGE)
        (tmp_path / "reliability.md").write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in marks))
        command = [sys.executable, "-m", f"tests.attacks.{name}", *arguments, "--docs", str(tmp_path)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        rows = [line for line in done.stdout.splitlines() if re.match(r"\| (?!what|---)", line)]
        written = (tmp_path / "reliability.md").read_text()
        assert "--command" in arguments or all(row in written for row in rows)
        return done, [row.strip("| ").split(" | ") for row in rows]

    return call


@pytest.fixture
def fuzz():
    return importlib.import_module("tests.attacks.fuzz")


def fail(error):
    raise error


def spin():
    while True:
        pass


def test_fuzz_finds_every_planted_fault(fuzz, monkeypatch, capsys):
    """Errors of other types or packages, or without a message; wrong answers; memory; hangs; processes that end."""
    inputs = [
        (lambda: None, "right answer"),
        (lambda: fail(ValueError("expected something else")), "clear error"),
        (lambda: fail(KeyError("x")), "KeyError"),
        (lambda: json.loads("{"), "JSONDecodeError of another package"),
        (lambda: fail(ValueError()), "a message of 0 characters"),
        (lambda: fail(fuzz.WrongAnswer()), "wrong answer"),
        (lambda: bytearray(3 * 2**30), "memory"),
        (spin, "hang"),
        (lambda: os.kill(os.getpid(), 9), "crash: signal"),
        (lambda: os._exit(3), "exit"),
        (lambda: None, "right answer"),
    ]

    class Fake(fuzz.Reader):
        what, clear = "nothing", (ValueError,)

        def read(self, source):
            inputs[source][0]()

    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    monkeypatch.setattr(fuzz, "OURS", (__file__,))
    monkeypatch.setattr(fuzz, "make_input", lambda reader, name, seed, number: number)
    monkeypatch.setitem(fuzz.READERS, "fake", Fake)
    handler = signal.getsignal(signal.SIGALRM)
    try:
        result = fuzz.fuzz("fake", len(inputs), functools.partial(fuzz.child, "fake", 0))
    finally:
        signal.signal(signal.SIGALRM, handler)

    expected = [(number, what) for number, (_, what) in enumerate(inputs) if what not in fuzz.FINE]
    assert [number for number, _ in result["findings"]] == [number for number, _ in expected]
    assert all(finding.startswith(what) for (_, finding), (_, what) in zip(result["findings"], expected))
    assert result["counts"] == {"right answer": 2, "clear error": 1, "finding": 8}
    assert capsys.readouterr().out.count("fake ") == 8


def test_fuzz_makes_the_same_input_again(fuzz, tmp_path):
    for name in ("picture", "taxonomy", "weights", "tables"):
        reader = fuzz.READERS[name](tmp_path)
        first, again, other = (fuzz.make_input(reader, name, 0, number) for number in (5, 5, 6))
        assert first == again != other


@pytest.mark.parametrize(
    "readers",
    [
        "picture taxonomy tables weights",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("command", "archives", "demo")),
    ],
)
def test_fuzz_finds_nothing_in_a_hundred_inputs(run, readers):
    if readers == "demo":
        pytest.importorskip("gradio")
    done, rows = run("fuzz", *readers.split(), "--inputs", "100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows) == len(readers.split())
    for row in rows:
        right, wrong, findings = map(int, row[2:5])
        assert right + wrong == 100 and right and wrong and findings == 0


def test_guided_fuzz_finds_nothing_in_a_hundred_inputs(run):
    pytest.importorskip("atheris")
    done, rows = run("guided", "taxonomy-json", "weights", "--inputs", "100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [int(row[2]) + int(row[3]) for row in rows] == [100, 100] and all(row[4] == "0" for row in rows)


@pytest.fixture
def faults(monkeypatch):
    return importlib.import_module("tests.attacks.faults")


def test_a_killed_job_resumes(faults, tmp_path):
    """Each process is killed only after it has made progress; then the job finishes undisturbed."""
    (tmp_path / "job.py").write_text(
        "import pathlib, sys, time\n"
        "for number in range(40):\n"
        "    file = pathlib.Path(sys.argv[1]) / str(number)\n"
        "    if not file.exists():\n"
        "        time.sleep(0.02)\n"
        "        file.write_text(str(number))\n"
    )
    (tmp_path / "out").mkdir()

    def state():
        return len(list((tmp_path / "out").iterdir()))

    command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path / "out")]
    states = faults.kill_and_resume(command, 3, 0.05, random.Random(0), state)
    assert len(states) == 3 and 0 < states[0] < states[1] < states[2] < 40 and state() == 40

    command[1] = "no job"
    with pytest.raises(SystemExit, match="ended with 2"):
        faults.kill_and_resume(command, 0, 0, random.Random(0), state)


@pytest.mark.parametrize(
    "arguments, faults, rows",
    [
        pytest.param("predict --pictures 600 --kills 1 --seed 3", "1 times SIGKILL", 1, marks=pytest.mark.slow),
        pytest.param("interrupt --pictures 600 --kills 1 --seed 3", "1 times SIGINT", 1, marks=pytest.mark.slow),
        ("disk --command segment", "1", 3),
    ],
)
def test_jobs_survive_a_few_faults(run, arguments, faults, rows):
    done, table = run("faults", *arguments.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(table) == rows and all(row[1].startswith(faults) and row[-1] == "0" for row in table)


@pytest.mark.slow
def test_answers_are_the_same_in_every_way(run, tiny_weights):
    """2 drawn pictures and the 6 in tests/pictures; mmpretrain has no config for these weights."""
    pytest.importorskip("transformers")
    done, rows = run("determinism", "--model", str(tiny_weights), "--pictures", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows == []
    lines = [line for line in done.stdout.splitlines() if line.endswith(" 0 8")]
    assert len(lines) == 14 and [line.split()[0] for line in lines[-3:]] == ["asked", "timm", "transformers"]


def test_the_report_has_no_miss(faults):
    tables = collections.defaultdict(list)
    for mark, text in re.findall(r"<!-- (faults \w+|fuzz) -->\n(.*?)<!-- /", PAGE, re.DOTALL):
        tables[mark] += [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert set(tables) == {"fuzz", *(f"faults {part}" for part in faults.PARTS)}
    assert all(row[-1] == "0" for mark, rows in tables.items() for row in rows if mark != "fuzz")
    assert all(row[4] == "0" and int(row[1].replace(",", "")) >= 10_000 for row in tables["fuzz"])
