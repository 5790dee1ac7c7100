"""Break long jobs in many ways, and compare what comes out with an undisturbed run.

    python -m tests.attacks.faults [PART ...] [--pictures 20000] [--kills 10]

Jobs are killed, interrupted, or run on a full disk, and requests are dropped. Every job runs on a tiny model that is
made here. A kill is SIGKILL at a random moment of the work; the same command then resumes it. RLIMIT_FSIZE, which
limits the size of each file, stands in for a full disk. The tests' own Hub server breaks the requests.
"""

import argparse
import collections
import contextlib
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch

from benchmarks import report
from hcast_zoo import cli
from tests.rights import drop_rights
from tests.tiny import make_pictures, make_tree, make_weights

SERVER = Path(__file__).parents[2] / "tests" / "hub_server.py"
COMMAND = (sys.executable, "-m", "hcast_zoo")
WHOLE = re.compile(r"_plan\.json|run\.json|log\.jsonl|tensorboard|checkpoint\.new|part-")
REASON = re.compile(r"Permission denied|Not a directory|File exists|File too large|No space left|folder")
HEADER = ["what", "faults", "outcome", "miss"]
# How a request fails: refused; connection closed before it is handled; handled, but the answer is lost.
FAULTS = {"status 500": {"status": 500}, "connection cut": {"status": 0}, "answer lost": {"status": 0, "lose": True}}


def kill_and_resume(command: list[str], kills: int, longest: float, rng: random.Random, state: Callable) -> list:
    """Start a command repeatedly and kill it at random moments, then let it finish; return the state at each kill.

    A process is killed at most ``longest`` seconds after it first makes progress, so that every kill falls into the
    work itself and not into the start of Python. If the job ends early, there are fewer than ``kills`` states.
    """
    states = []
    with tempfile.TemporaryFile("w+") as errors:
        while True:
            before, moment = state(), float("inf")
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
            while process.poll() is None and (len(states) == kills or time.monotonic() < moment):
                time.sleep(0.01)
                if moment == float("inf") and state() != before:
                    moment = time.monotonic() + rng.uniform(0, longest)
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                states.append(state())
            elif process.returncode in (0, 1):
                return states
            else:
                errors.seek(0)
                raise SystemExit(f"{command} ended with {process.returncode}:\n{errors.read()[-3000:]}")


def measure(command: list[str], rng: random.Random) -> tuple[float, float]:
    """Run a command undisturbed, and again with nothing left to do; return the seconds of both."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        kill_and_resume(command, 0, 0, rng, list)
        times.append(time.perf_counter() - start)
    return times[0], times[1]


def predict(args: argparse.Namespace, folder: Path) -> Iterator[list]:
    """Predict many pictures, some broken, with kills; compare with the same job left alone."""
    model, rng = make_weights(folder / "tiny.safetensors"), random.Random(args.seed)
    files = make_pictures(folder / "pictures", args.pictures, broken=0.02)
    (folder / "list.txt").write_text("\n".join(files) + "\n")
    size = max(1, args.pictures // 100)

    def command(output: str) -> list[str]:
        words = [*COMMAND, "predict", "--files-from", str(folder / "list.txt"), "--model", str(model)]
        return [*words, "--output", str(folder / output), "--part-size", str(size)]

    whole, idle = measure(command("quiet"), rng)
    quiet = pq.read_table(folder / "quiet").to_pylist()

    def state() -> int:
        return len(list((folder / "killed").glob("part-*.parquet")))

    parts = kill_and_resume(command("killed"), args.kills, (whole - idle) / args.kills, rng, state)

    rows = pq.read_table(folder / "killed").to_pylist()
    counts = collections.Counter(row["file"] for row in rows)
    missing, twice = sum(f not in counts for f in files), sum(n > 1 for n in counts.values())
    unexplained = sum(not row["path"] and not row["error"] for row in rows)
    differ = sum(a != b for a, b in zip(rows, quiet)) + abs(len(rows) - len(quiet))
    broken = sum(row["error"] is not None for row in rows)
    left = len(list((folder / "killed").glob(".*")))

    yield [
        f"`predict` of {len(files):,} pictures, {broken} of them broken",
        f"{len(parts)} times SIGKILL, with {', '.join(map(str, parts))} of {-(-len(files) // size)} parts done",
        f"{len(rows):,} rows; {missing} "
        f"missing, {twice} twice, {unexplained} without answer or reason, {differ} unlike the uninterrupted run; "
        f"{left} hidden files left behind",
        missing + twice + unexplained + differ + args.kills - len(parts),
    ]


def train(args: argparse.Namespace, folder: Path) -> Iterator[list]:
    """Train with kills; compare the weights with those of the same run left alone."""
    model, data, rng = make_weights(folder / "tiny.safetensors"), make_tree(folder / "tree"), random.Random(args.seed)

    def command(output: str) -> list[str]:
        options = "--epochs 40 --batch-size 4 --workers 1 --warmup-epochs 1 --ema-decay 0.9 --checkpoint-steps 1"
        words = [*COMMAND, "train", "--data", str(data), "--output", str(folder / output), "--model", str(model)]
        return [*words, *options.split()]

    whole, idle = measure(command("quiet"), rng)
    steps = kill_and_resume(
        command("killed"), args.kills, (whole - idle) / args.kills, rng, lambda: _step(folder / "killed")
    )

    names = ("last.safetensors", "best.safetensors", "checkpoint/model.safetensors")
    differ = [n for n in names if _digest(folder / "quiet" / n) != _digest(folder / "killed" / n)]
    logs = []
    for name in ("quiet", "killed"):
        logs.append([json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()])
    losses = sum(a["step"] != b["step"] or a.get("val/fpa") != b.get("val/fpa") for a, b in zip(*logs))
    losses += abs(len(logs[0]) - len(logs[1]))

    yield [
        "`train`, 40 epochs of 6 steps",
        f"{len(steps)} times SIGKILL, at steps {', '.join(map(str, steps))}",
        f"{len(names) - len(differ)} of {len(names)} weight files have the bytes of the uninterrupted run; {losses} "
        "lines of the log differ",
        len(differ) + losses + args.kills - len(steps),
    ]


def _reason(line: str) -> str:
    """Return an error without this machine's paths."""
    return "`" + re.sub(r"'?/\S+'?", "...", line).replace("|", "") + "`"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def disk(args: argparse.Namespace, folder: Path) -> Iterator[list]:
    """Run commands where files cannot be written; old files must stay, and no partial files may appear."""
    torch.set_num_threads(1)  # a fork inherits no threads, and would wait for them
    model, data = make_weights(folder / "tiny.safetensors"), make_tree(folder / "tree")
    picture = str(next((data / "val").rglob("0.png")))
    commands = {
        "predict --output": ["predict", str(data / "val"), *f"--model {model} --output OUT --part-size 8".split()],
        "segment": ["segment", picture, "--model", str(model), "--output", "OUT"],
        "adapt": ["adapt", picture, "--target", "bird", "--model", str(model), "--output", "OUT", "--steps", "1"],
        "calibrate": ["calibrate", str(model), "--data", str(data), "--output", "OUT/new.safetensors"],
        "evaluate --card": ["evaluate", *f"--data {data} --split val --model {model} --card OUT/card.md".split()],
        "export": ["export", str(model), "--output", "OUT/model.onnx"],
        "train": [
            "train",
            *f"--data {data} --output OUT --model {model} --epochs 1 --batch-size 4 --workers 0".split(),
        ],
        "publish --dry-run": ["publish", str(model), "--repo", "org/tiny", "--dry-run", "--output", "OUT"],
    }
    commands = {name: words for name, words in commands.items() if args.command in (None, name)}
    for name, words in commands.items():  # once here, so that forks without rights import nothing
        (folder / "first").mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            code = cli.main([w.replace("OUT", str(folder / "first")) for w in words])
        if code:
            raise SystemExit(f"{name} fails where nothing is wrong")
        shutil.rmtree(folder / "first")

    for name, words in commands.items():
        limit = 64 if name in ("evaluate --card", "predict --output") else 4096
        for fault in ("full disk", "read-only folder", "a file where the folder should be"):
            where = folder / re.sub(r"\W+", "-", f"{name} {fault}")
            if fault.startswith("a file"):
                where.write_text("a file")
            else:
                where.mkdir()
            before = _files(where)
            command = [w.replace("OUT", str(where)) for w in words]
            code, errors = _in_child(command, limit if fault == "full disk" else None, fault == "read-only folder")
            after = _files(where)
            # Complete parts of a resumable job may stay, and so may a complete report.

            partial = [f for f in after if f not in before and not WHOLE.search(f)]
            last = errors.strip().splitlines()[-1] if errors.strip() else ""  # a progress bar may come before it
            clear = code == 2 and "Traceback" not in errors and last.startswith("hcast-zoo ") and REASON.search(last)
            changed = [f for f in before if after.get(f) != before[f]]
            again = ""
            if fault == "full disk":
                for path in where.glob("*") if name.startswith("publish") else ():
                    path.unlink()
                again = _in_child(command, None, False)[0]
            yield [
                f"`{name}`, {fault}",
                "1",
                f"exit code {code}, {_reason(last) if clear else repr(errors[-300:])}, "
                f"{len(partial)} partial files"
                + (f"; the same command later: exit code {again}" if again != "" else ""),
                (not clear) + len(partial) + len(changed) + (again not in ("", 0)),
            ]


def _files(path: Path) -> dict[str, str]:
    files = path.rglob("*") if path.is_dir() else [path]
    return {str(f.relative_to(path)): _digest(f) for f in files if f.is_file()}


def _in_child(command: list[str], limit: int | None, unprivileged: bool) -> tuple[int, str]:
    """Run a command in a fork of this process, which has imported everything; return exit code and stderr.

    Args:
        command: Arguments of the command.
        limit: Largest size of a file in bytes; None for no limit.
        unprivileged: Make read-only each folder in the command, and the parent folders of its files if empty.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.close(read)
            errors = io.StringIO()
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                if limit is not None:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                if unprivileged:
                    for word in command:
                        if Path(word).is_dir():
                            os.chmod(word, 0o555)
                    for file in [Path(w).parent for w in command if Path(w).parent.is_dir() and "/" in w]:
                        if not any(file.iterdir()):
                            os.chmod(file, 0o555)
                    if os.geteuid() == 0:
                        drop_rights()
                try:
                    code = cli.main(command)
                except SystemExit as stop:
                    code = stop.code
            os.write(write, errors.getvalue().encode()[-60000:])
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(code)

    os.close(write)
    with os.fdopen(read) as stream:
        stderr = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stderr


def interrupt(args: argparse.Namespace, folder: Path) -> Iterator[list]:
    """Press Ctrl-C at random moments of predict; then let it resume."""
    yield _signal(args, folder, signal.SIGINT, "Ctrl-C", "interrupted")


def signals(args: argparse.Namespace, folder: Path) -> Iterator[list]:
    """End predict by the signals of a shutdown and of a closed terminal; then let it resume."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        (folder / number.name).mkdir()
        yield _signal(args, folder / number.name, number, number.name, f"ended by {number.name}")


def _signal(args: argparse.Namespace, folder: Path, number: signal.Signals, name: str, word: str) -> list:
    """Send a signal to the whole process group, workers included, at random moments of predict; then let it resume.

    The exit code is 128 plus the signal's number; minus the number if Python was not handling signals yet, or no
    longer was; 0 if the job had already finished.
    """
    model, rng = make_weights(folder / "tiny.safetensors"), random.Random(args.seed)
    files = make_pictures(folder / "pictures", min(args.pictures, 2000))
    words = [*COMMAND, "predict", str(folder / "pictures"), "--model", str(model), "--output", str(folder / "out")]
    command = [*words, *"--part-size 50 --workers 2 --batch-size 4".split()]
    whole, idle = measure([word.replace(str(folder / "out"), str(folder / "quiet")) for word in command], rng)
    codes, unclear, parts = collections.Counter(), 0, []
    for _ in range(args.kills):
        # Background jobs of a shell ignore SIGINT: restore the default handler, as under a terminal.
        # Warnings are off: torch's, about the number of workers, would mix with the message.
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            preexec_fn=lambda: number == signal.SIGINT and signal.signal(number, signal.default_int_handler),
        )
        moment = rng.uniform(idle / 2, idle + (whole - idle) / args.kills)
        try:
            _, errors = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
            _, errors = process.communicate(timeout=60)
        codes[process.returncode] += 1
        parts.append(len(list((folder / "out").glob("*.parquet"))))
        if "Traceback" in errors or (process.returncode == 128 + number and errors.strip() != word):
            unclear += 1
            print(f"after {moment:.2f} s:\n{errors[-1500:]}", file=sys.stderr)
    kill_and_resume(command, 0, 0, rng, list)
    rows = pq.read_table(folder / "out").to_pylist()
    wrong = (len(rows) != len(files)) + ([r["file"] for r in rows] != files)
    wrong += sum(count for code, count in codes.items() if code not in (128 + number, -number, 0))
    wrong += len(list((folder / "out").glob(".*.parquet*")))
    return [
        f"{name} in `predict --workers 2`",
        f"{args.kills} times {number.name}, with {', '.join(map(str, parts))} of {-(-len(files) // 50)} parts done",
        f"exit codes {dict(codes)}; {unclear} times more than the words `{word}`; afterwards "
        f"{len(rows):,} rows of {len(files):,}",
        unclear + wrong,
    ]


def checkpoints(args: argparse.Namespace, folder: Path) -> Iterator[list]:
    """Damage the checkpoints of a killed run at random; it must reach the same weights, or explain what is wrong."""
    torch.set_num_threads(1)
    rng, model, data = random.Random(args.seed), make_weights(folder / "tiny.safetensors"), make_tree(folder / "tree")

    def command(output: Path) -> list[str]:
        options = "--epochs 4 --batch-size 4 --workers 0 --checkpoint-steps 1"
        return ["train", "--data", str(data), "--output", str(output), "--model", str(model), *options.split()]

    def weights(output: Path) -> list[str]:
        return [_digest(output / name) for name in ("last.safetensors", "best.safetensors")]

    code, errors = _in_child(command(folder / "quiet"), None, False)
    if code:
        raise SystemExit(f"training fails where nothing is wrong: {errors[-2000:]}")
    run = folder / "killed"
    process = subprocess.Popen(
        [*COMMAND, *command(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in the other runs: rounding depends on the number of threads
    )
    while process.poll() is None and not _step(run) >= 9:
        time.sleep(0.005)
    process.kill()
    process.wait()

    outcomes, missed = collections.Counter(), 0
    for number in range(3 * args.kills):
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        names = ("checkpoint", "checkpoint.old") if number % 3 == 2 else ("checkpoint",)
        for name in names:
            _damage(rng.choice([f for f in sorted((copy / name).rglob("*")) if f.is_file()]), rng)
        code, errors = _in_child(command(copy), None, False)
        if code == 0 and weights(copy) == weights(folder / "quiet"):
            outcomes["the same weights as the uninterrupted run's"] += 1
        elif code == 2 and "Traceback" not in errors and "hcast-zoo train: " in errors:
            outcomes["exit code 2 and the damage named"] += 1
        else:
            missed += 1
            print(f"damage {number}: exit code {code}, {errors[-1000:]}", file=sys.stderr)

    yield [
        f"`train`, killed at step {_step(run)} of 24",
        f"{3 * args.kills} times a file of the newest checkpoint, and each third time of the one before too: bits "
        "flipped, cut short, overwritten or removed",
        "; ".join(f"{count} times {what}" for what, count in outcomes.most_common()),
        missed,
    ]


def _step(run: Path) -> int:
    """Return the step of a run's newest checkpoint; 0 if there is none."""
    for name in ("checkpoint", "checkpoint.old"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            return json.loads((run / name / "progress.json").read_text())["step"]
    return 0


def _damage(file: Path, rng: random.Random) -> None:
    """Flip bits of a file, cut it short, overwrite a piece of it, or remove it."""
    data = bytearray(file.read_bytes())
    kind, at = rng.randrange(4), rng.randrange(max(1, len(data)))
    if kind == 0 and data:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at : at + 64] = rng.randbytes(64)
    else:
        file.unlink()
        return
    file.write_bytes(data)


def owners(args: argparse.Namespace, folder: Path) -> Iterator[list]:
    """Start several processes at once on one folder; one works, the others are refused or find the job done."""
    model = make_weights(folder / "tiny.safetensors")
    files = make_pictures(folder / "pictures", min(args.pictures, 600))
    codes, missed, rounds, together = collections.Counter(), 0, max(1, args.kills // 3), 4
    for number in range(rounds):
        output = folder / f"out-{number}"
        words = ["predict", str(folder / "pictures"), "--model", str(model), "--output", str(output)]
        words += ["--part-size", "20"]
        processes = [
            subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for _ in range(together)
        ]
        for process in processes:
            _, errors = process.communicate()
            codes[process.returncode] += 1
            refused = process.returncode == 2 and "another process" in errors and "Traceback" not in errors
            missed += not (refused or process.returncode == 0)
        rows = pq.read_table(output).to_pylist()
        missed += [row["file"] for row in rows] != files

    yield [
        f"{together} times the same `predict --output` at once",
        f"{rounds} rounds",
        f"exit codes {dict(codes)}: 2 means that the other process was named; every picture has one row",
        missed,
    ]


def publish(args: argparse.Namespace, folder: Path) -> Iterator[list]:
    """Break each request that publishing sends, in three ways; then publish again."""
    process = subprocess.Popen(
        [sys.executable, str(SERVER), "--root", str(folder / "hub")], stdout=subprocess.PIPE, text=True
    )
    try:
        url = process.stdout.readline().strip()
        environment = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_test",
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        model = make_weights(folder / "tiny.safetensors")
        client = subprocess.run(
            [sys.executable, "-m", "tests.attacks.faults", "--publish-client", str(model)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        )  # stderr is passed through: it shows which request failed
        yield from json.loads(client.stdout.splitlines()[-1])
    finally:
        process.terminate()
        process.wait()


def publish_client(model: str) -> None:
    """Publish once undisturbed to list the requests, then once for each request and fault; print the report's rows."""
    from huggingface_hub import HfApi, constants, errors

    from hcast_zoo.sharing.publish import publish as publish_model
    from hcast_zoo.weights.hub import HubError

    url, api = constants.ENDPOINT, HfApi()

    def ask(path: str, data: dict | None = None):
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(urllib.request.Request(url + path, body)) as answer:
            return json.load(answer)

    def state(repo: str) -> list[str]:
        try:
            return sorted(s.rfilename for s in api.model_info(repo).siblings)
        except errors.RepositoryNotFoundError:
            return []

    start = len(ask("/_test/log"))
    publish_model(model, "org/peace", tag="v1", revision="next")
    requests = [f"{method} {path.split('?')[0]}" for method, path, _ in ask("/_test/log")[start:]]
    requests = list(dict.fromkeys(r for r in requests if "/_test/" not in r))
    whole = sorted(s.rfilename for s in api.model_info("org/peace", revision="next").siblings)
    rows = []
    for name, fault in FAULTS.items():
        refused = succeeded = partial = stuck = 0
        for number, request in enumerate(requests):
            repo = f"org/{name.replace(' ', '-')}-{number}"
            pattern = re.sub(r"[0-9a-f]{64}|[0-9a-f]{40}", "[0-9a-f]+", re.escape(request))
            pattern = pattern.replace(re.escape("org/peace"), re.escape(repo)) + "$"

            ask("/_test/fault", {"match": pattern, "times": 99, **fault})
            try:
                publish_model(model, repo, tag="v1", revision="next")
                succeeded += 1  # the request was not needed, or had another form
            except HubError:
                refused += 1

            ask("/_test/forget")
            try:
                files = sorted(s.rfilename for s in api.model_info(repo, revision="next").siblings)
            except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
                files = state(repo)
            partial += files not in ([], [".gitattributes"], whole)

            try:
                publish_model(model, repo, tag="v1", revision="next")
                files = sorted(s.rfilename for s in api.model_info(repo, revision="v1").siblings)
                stuck += files != whole
            except HubError as error:
                stuck += 1
                print(f"{name}, {request}: {error}", file=sys.stderr)
        rows.append(
            [
                f"`publish` of {len(whole)} files to a branch, with a tag: {name}",
                f"each of {len(requests)} requests, until given up",
                f"{refused} ended with an error, {succeeded} succeeded all the same; {partial} partial repositories; "
                f"{stuck} that the same command does not complete later",
                partial + stuck,
            ]
        )
    print(json.dumps(rows))


PARTS = {
    "predict": predict,
    "train": train,
    "disk": disk,
    "interrupt": interrupt,
    "publish": publish,
    "signals": signals,
    "checkpoints": checkpoints,
    "owners": owners,
}


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--pictures", type=int, default=20_000, help="to predict (%(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="of each job (%(default)s)")
    parser.add_argument("--command", metavar="COMMAND", help="a row of disk alone, and no report: such as export")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the report (%(default)s)")
    parser.add_argument("--publish-client", metavar="WEIGHTS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.publish_client:
        publish_client(args.publish_client)
        return 0
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}: expected {', '.join(PARTS)}")
    missed = 0
    for name in args.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="hcast-zoo-faults-") as folder:
            os.chmod(folder, 0o755)
            rows = list(PARTS[name](args, Path(folder)))
        print(report.table(HEADER, rows), flush=True)
        missed += sum(bool(row[-1]) for row in rows)
        if args.command:
            continue
        options = f"{name} --pictures {args.pictures} --kills {args.kills} --seed {args.seed}"
        report.write_section(args.docs, "reliability.md", f"faults {name}", report.table(HEADER, rows), options)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
