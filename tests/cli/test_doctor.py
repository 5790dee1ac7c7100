"""What a new user meets first: grouped help, versions, `doctor`, and shell completion."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hcast_zoo.cli import main
from hcast_zoo.cli.doctor import EXTRAS
from hcast_zoo.cli.overview import EXAMPLES, GROUPS
from hcast_zoo.cli.parser import make_parser
from hcast_zoo.weights.file import packaged_weights

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEVELOPMENT = {"all", "test", "docs", "benchmarks", "recipes"}  # extras that no user needs


def commands():
    action = next(a for a in make_parser()._actions if a.dest == "command")
    return set(action.choices)


def test_help_lists_each_command_once(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped)) and commands() <= set(grouped)
    for name in commands():
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
    for group in GROUPS:
        assert f"{group}:" in lines


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_ends_with_an_example_that_parses(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: hcast-zoo {name} ")
    assert text.rstrip().endswith(EXAMPLES[name])
    if name != "completion":  # its example is a line for the shell
        make_parser().parse_args(shlex.split(EXAMPLES[name])[1:])


def test_version_names_torch_too(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("hcast-zoo ") and "torch 2." in text and text.count("\n") == 1


def test_doctor_reports_what_is_installed(capsys):
    code = main(["doctor", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert code == (1 if facts["advice"] else 0)
    assert facts["versions"]["torch"] and set(facts["extras"]) == set(EXTRAS)
    assert set(facts["weights"]) == set(packaged_weights())
    assert all("checksum right" in state for state in facts["weights"].values())


def test_doctor_finds_damaged_weights(capsys, monkeypatch):
    index = packaged_weights()
    name = next(iter(index))
    monkeypatch.setattr(
        "hcast_zoo.weights.file.packaged_weights", lambda: index | {name: {**index[name], "sha256": "0" * 64}}
    )
    assert main(["doctor"]) == 1
    assert f"! {name}: damaged" in capsys.readouterr().out


def test_doctor_knows_every_extra():
    file = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(file.read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - DEVELOPMENT


def test_shell_completion_completes_a_command(capsys, tmp_path):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    ask = (
        f"source {script}; COMP_WORDS=(hcast-zoo pred); COMP_CWORD=1; "
        "_shtab_hcast_zoo hcast-zoo pred hcast-zoo; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert done.stdout.split() == ["predict"], done.stderr


def test_quiet_and_verbose_change_what_is_printed(tiny_weights, picture_folder, capsys):
    (picture_folder / "notes.txt").write_text("no picture")
    command = ["predict", str(picture_folder), "--model", str(tiny_weights)]
    assert main(command) == 0 and "skipped .txt" in capsys.readouterr().err
    assert main([*command, "--quiet"]) == 0 and "skipped" not in capsys.readouterr().err

    wrong = [*command, "--within", "nowhere"]
    assert main(wrong) == 2 and "Traceback" not in capsys.readouterr().err
    assert main([*wrong, "--verbose"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors and errors.splitlines()[-1].startswith("hcast-zoo predict: ")
