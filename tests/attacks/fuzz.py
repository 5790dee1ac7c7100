"""Feed broken and hostile input to every reader, and count the outcomes.

    python -m tests.attacks.fuzz --inputs 10000 [picture taxonomy weights tables command archives demo]

Each input is a good one, changed at random. Input number n of a reader depends on the seed and n alone, so ``--only``
reproduces a finding. Readers run in a process of their own. If it crashes, hangs or grows too large, that is counted,
and the next input gets a new process. Acceptable outcomes are a right answer and a clear error: an error of the
reader's own types, raised by the package's own code, with a message. Anything else is a finding; the exit code is 1.

Time is CPU time. Memory is the peak that an input adds to the process; the address space is limited.
"""

import argparse
import collections
import functools
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

os.environ["HF_HUB_OFFLINE"] = "1"  # no network access, even for names that look like org/name

import torch

import hcast_zoo
from benchmarks import report
from tests.attacks.archive_reader import Archives
from tests.attacks.demo_reader import DemoPage
from tests.attacks.readers import MESSAGE, READERS, Reader, WrongAnswer

READERS.update(archives=Archives, demo=DemoPage)
MEMORY = 1536 * 2**20  # bytes that an input may add
SECONDS = 10.0  # CPU time after which an input counts as a hang; PATIENCE limits wall-clock time
PATIENCE = 120.0
CHUNK = 500  # inputs per process
FINE = ("right answer", "clear error")
HEADER = ["what", "inputs", "right answers", "clear errors", "findings", "slowest", "most memory", "command", "code"]
OURS = (str(Path(hcast_zoo.__file__).parent), str(Path(hcast_zoo.__file__).parent.parent / "integrations"))


def judge(error: BaseException, reader: Reader) -> str:
    """Return "clear error", or what is wrong with an error."""
    chain, cause = [error], _cause(error)
    while cause is not None and len(chain) < 10:
        chain, cause = [*chain, cause], _cause(cause)
    for kind, name in ((MemoryError, "memory"), (Hang, "hang"), (RecursionError, "recursion")):
        if any(isinstance(e, kind) for e in chain):
            return f"{name}: {_place(error)}"
    if isinstance(error, WrongAnswer):
        return f"wrong answer: {str(error)[:300]}"
    if not isinstance(error, reader.clear):
        return f"{type(error).__name__}: {_place(error)}"
    if isinstance(error, SystemExit):
        return "clear error"  # the reader has checked its message
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    if not reader.foreign and not place.startswith(OURS):
        return f"{type(error).__name__} of another package: {_place(error)}"
    longest = MESSAGE if place.startswith((*OURS, str(Path(__file__).parent))) else sys.maxsize
    if not 5 <= len(str(error)) <= longest:  # no limit for others: huggingface_hub quotes a wrong value whole
        return f"a message of {len(str(error))} characters: {_place(error)}"
    return "clear error"


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ if error.__suppress_context__ else error.__context__


def _place(error: BaseException) -> str:
    """Return the last line of our own code in an error's traceback, and its message."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(OURS)] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {type(error).__name__}: {str(error)[:200]}"


class Hang(BaseException):
    """An input took too long."""


def _alarm(*_):
    raise Hang


def read_one(reader: Reader, source) -> str:
    """Return the outcome of an input: "right answer", "clear error", or a finding."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reader.read(source)
        return "right answer"
    except BaseException as error:
        return judge(error, reader)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def make_input(reader: Reader, name: str, seed: int, number: int):
    """Return input ``number`` of a reader."""
    return reader.make(random.Random(f"{seed} {name} {number}"))


def child(name: str, seed: int, numbers: range, pipe: int) -> None:
    """Read inputs, and report each with :func:`record`."""
    prepare()
    with tempfile.TemporaryDirectory(prefix="hcast-zoo-fuzz-") as folder, os.fdopen(pipe, "w") as out:
        reader = READERS[name](Path(folder))
        limit_memory(reader, numbers[0], make_input(reader, name, seed, numbers[0]), out)
        for number in numbers:
            record(reader, number, make_input(reader, name, seed, number), out)


def prepare() -> None:
    """Make a process ready for hostile input."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _alarm)
    torch.set_num_threads(1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # where C libraries write


def limit_memory(reader: Reader, number: int, source, out: TextIO) -> None:
    """Read an input twice, so that imports and caches of the first use are not counted; then limit memory."""
    print(json.dumps([number]), file=out, flush=True)
    for _ in range(2):
        read_one(reader, source)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY, resource.RLIM_INFINITY))


def record(reader: Reader, number: int, source, out: TextIO) -> str:
    """Read an input; write [number] before, and [number, outcome, seconds, bytes] after, each as a line of JSON."""
    print(json.dumps([number]), file=out, flush=True)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _status("VmRSS"), time.process_time()
    outcome = read_one(reader, source)
    seconds = time.process_time() - start
    size = max(0, _status("VmHWM") - before)
    print(json.dumps([number, outcome, seconds, size]), file=out, flush=True)
    return outcome


def _status(key: str) -> int:
    """Return a value of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def run_chunk(name: str, numbers: range, work: Callable[[range, int], None]):
    """Yield (number, outcome, seconds, bytes) of inputs, up to the first that ends the process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            work(numbers, write)
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stdout__)
        finally:
            sys.__stdout__.flush()
            os._exit(code)
    os.close(write)
    last, finished = None, numbers[0] - 1
    timer = _Killer(pid)
    with os.fdopen(read) as stream:
        while True:
            timer.wind(PATIENCE)
            try:
                message = json.loads(stream.readline())
            except ValueError:  # the end of the stream, perhaps in the middle of a line
                break
            last = message[0]
            if len(message) > 1:
                finished = last
                yield message
    timer.stop()
    status = os.waitpid(pid, 0)[1]
    if status and last is None:
        raise SystemExit(f"{name}: the reader could not be set up")
    if status:
        number = last if last != finished else last + 1
        what = "hang" if timer.killed else f"crash: signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "exit"
        yield number, what, PATIENCE if timer.killed else 0.0, 0


class _Killer:
    """Kills a child that has not answered in time, by an alarm in this process."""

    def __init__(self, pid: int):
        self.pid, self.killed = pid, False
        signal.signal(signal.SIGALRM, self._kill)

    def _kill(self, *_):
        self.killed = True
        os.kill(self.pid, signal.SIGKILL)

    def wind(self, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz(name: str, inputs: int, work: Callable[[range, int], None], chunk: int = CHUNK) -> dict:
    """Fuzz a reader; return the counts, the largest time and memory, and the findings.

    Args:
        name: Name of the reader, for the output.
        inputs: Number of inputs.
        work: Reads a range of inputs in a process of its own, and reports them on a pipe; see :func:`child`.
        chunk: Inputs per process.
    """
    counts, findings, slowest, largest, done = collections.Counter(), [], 0.0, 0, 0
    while done < inputs:
        for number, outcome, seconds, size in run_chunk(name, range(done, min(done + chunk, inputs)), work):
            done = number + 1
            fine = outcome in FINE
            if not fine:
                findings.append((number, outcome))
                print(f"{name} {number}: {outcome}", flush=True)
            counts[outcome if fine else "finding"] += 1
            slowest, largest = max(slowest, seconds), max(largest, size)
    return {"counts": counts, "findings": findings, "seconds": slowest, "bytes": largest}


def show(name: str, seed: int, number: int) -> None:
    """Read one input in this process; print the input and the whole traceback."""
    with tempfile.TemporaryDirectory() as folder:
        reader = READERS[name](Path(folder))
        source = make_input(reader, name, seed, number)
        print(repr(source)[:5000])
        try:
            reader.read(source)
            print("right answer")
        except BaseException as error:
            traceback.print_exc()
            print(judge(error, reader))


def write(what: str, name: str, args: argparse.Namespace, result: dict) -> int:
    """Write a row of the report; return the number of findings."""
    counts = [f"{result['counts'][kind]:,}" for kind in ("right answer", "clear error", "finding")]
    command = f"`{Path(sys.argv[0]).name} {name} --inputs {args.inputs} --seed {args.seed}`"
    row = [
        what,
        f"{args.inputs:,}",
        *counts,
        f"{result['seconds']:.2f} s",
        f"{result['bytes'] / 2**20:.0f} MiB",
        command,
        report.code_version(),
    ]
    print(report.table(HEADER, [row]), flush=True)
    report.write_row(args.docs, "reliability.md", "fuzz", HEADER, row)
    return len(result["findings"])


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)} (all)")
    parser.add_argument("--inputs", type=int, default=10_000, help="of each reader (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="input N alone, of one reader, with its traceback")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the report (%(default)s)")
    args = parser.parse_args()
    if unknown := set(args.readers) - set(READERS):
        parser.error(f"no reader {', '.join(unknown)}: expected {', '.join(READERS)}")
    names = args.readers or list(READERS)
    if args.only is not None:
        return show(names[0], args.seed, args.only)
    findings = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            READERS[name](Path(folder)).warm()
        result = fuzz(name, args.inputs, functools.partial(child, name, args.seed))
        findings += write(READERS[name].what, name, args, result)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
