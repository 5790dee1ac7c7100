"""Data is never run as code: checked in the syntax trees of our sources, and with real pickles and templates."""

import ast
import pickle
from pathlib import Path

import pytest

from hcast_zoo.cli import main
from hcast_zoo.weights.file import Weights

ROOT = Path(__file__).parents[2]
FOLDERS = ("hcast_zoo", "integrations", "benchmarks", "recipes")
SOURCES = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
CALLS = {"eval", "exec", "compile", "__import__"}  # only as functions: model.eval() is something else
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
METHODS = {
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.load_all",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "pd.read_pickle",
    "pandas.read_pickle",
    "torch.jit.load",
    "torch.hub.load",
    "runpy.run_path",
    "builtins.eval",
    "builtins.exec",
}


def dotted(node) -> str:
    """Return ``a.b.c`` of a name or an attribute, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    head = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{head}.{node.attr}" if head else ""


def faults(source: str) -> list[str]:
    """Return the calls and imports of a source that could run code from data."""
    faults_found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            faults_found += [f"line {node.lineno}: imports {n}" for n in names if n.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        options = {k.arg: k.value for k in node.keywords}

        def says(option, value, options=options):
            return isinstance(options.get(option), ast.Constant) and options[option].value is value

        wrong = name in CALLS or name in METHODS
        wrong |= name == "torch.load" and not says("weights_only", True)
        wrong |= name in ("np.load", "numpy.load") and "allow_pickle" in options and not says("allow_pickle", False)
        wrong |= "shell" in options and not says("shell", False)
        wrong |= "trust_remote_code" in options and says("trust_remote_code", True)
        if wrong:
            faults_found.append(f"line {node.lineno}: {name or ast.unparse(node)[:60]}")
    return faults_found


ON_COMMAND = {"integrations/timm/scripts.py": "runpy.run_path"}  # `hcast-zoo timm SCRIPT` runs the given script


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_source_runs_code_from_data(file):
    allowed = ON_COMMAND.get(file.relative_to(ROOT).as_posix())
    faults_found = faults(file.read_text(encoding="utf-8"))
    assert [fault.split(": ", 1)[1] for fault in faults_found] == ([allowed] if allowed else [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "exec(x)",
        "torch.load(f)",
        "__import__(name)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f)",
        "yaml.load(f, Loader=yaml.Loader)",
        "os.system(x)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_check_finds_unsafe_calls(source):
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "torch.load(f, weights_only=True)",
        "yaml.safe_load(f)",
        "np.load(f)",
        "subprocess.run(['git'])",
        "re.compile('x')",
    ],
)
def test_the_check_accepts_harmless_calls(source):
    assert faults(source) == []


def test_torch_load_is_called_only_for_checkpoints():
    """Exceptions: mmpretrain's own checkpoints, and the teacher's in a recipe, which are torch files too."""
    recipe = {f"recipes/in1k/{name}.py" for name in ("__main__", "shards", "stages", "teacher")}
    allowed = {"hcast_zoo/weights/official.py", "integrations/mmpretrain/checkpoint.py", *recipe}
    files = {str(f.relative_to(ROOT)) for f in SOURCES if "torch.load(" in f.read_text(encoding="utf-8")}
    assert files == allowed


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize(
    "name", ["x.pth", "x.safetensors", "x.parquet", "x.csv", "x.json", "x.png", "model.safetensors"]
)
def test_a_pickle_is_never_run(name, tmp_path, capsys):
    hit, file = tmp_path / "hit", tmp_path / name
    file.write_bytes(pickle.dumps(Bomb(hit)))
    picture = str(ROOT / "tests/pictures/lion.png")
    for command in (
        ["convert", str(file), str(tmp_path / "out.safetensors")],
        ["info", str(file)],
        ["info", str(tmp_path)],
        ["predict", picture, "--model", str(file)],
        ["predict", str(file)],
        ["evaluate", "--data", str(file)],
        ["train", "--data", str(file), "--output", str(tmp_path / "run")],
        ["train", "--data", str(tmp_path), "--output", str(tmp_path / "run"), "--taxonomy", str(file)],
        ["publish", "x", "--repo", "a/b", "--dry-run", "--evaluations", str(file)],
    ):
        code = main(command)
        captured = capsys.readouterr()
        assert code in (1, 2) and captured.err and "Traceback" not in captured.err, command
    assert not hit.exists()
    pickle.loads(file.read_bytes())  # shows that the bomb works
    assert hit.exists()


def test_template_syntax_in_names_stays_text(tiny_model, taxonomy):
    """Braces in names stay braces, in the card and on a Space."""
    from hcast_zoo.sharing.model_card import Evaluation, render_card
    from hcast_zoo.taxonomy.tree import Taxonomy

    evil = "{{ 7 * 7 }}{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}"
    t = Taxonomy((evil, *taxonomy.levels[1:]), taxonomy.names, taxonomy.parents, evil)
    weights = Weights(
        tiny_model.config,
        t,
        tiny_model.state_dict(),
        dict.fromkeys(("name", "license", "description", "limits", "training", "data"), evil),
    )
    results = {"best_path": {"fpa": 1.0, f"accuracy/{evil}": 2.0}, evil: {"fpa": 1.0, "x": 2.0}}
    evaluation = Evaluation("00", evil, evil, 1, results, evil, evil, evil, evil)
    text = render_card(weights, [evaluation], evil, None)
    assert "49" not in text and "subclass" in text and "<class" not in text
