"""What timm's train.py, validate.py, inference.py, benchmark.py and onnx_export.py do, on a tiny model.

The scripts are only in timm's repository, not in its package; these tests make the same calls in the same order.
"""

import re
import subprocess
import sys
import warnings
from argparse import Namespace

import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageDataset, create_dataset, create_loader, resolve_input_data_config
from timm.data.readers import create_reader
from timm.models import load_checkpoint, resolve_model_input_args
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ModelEmaV3, accuracy

from hcast_zoo.cli import main
from hcast_zoo.integrations.timm.scripts import UprightReader
from tests.integrations.test_timm_model import TINY

SIZE_FREE = {k: v for k, v in TINY.items() if k not in ("img_size", "num_superpixels")}
STAND_IN = """
import sys
import timm, torch
from timm.data import create_dataset

if __name__ == "__main__":
    dataset = create_dataset("", root=sys.argv[2], split="val", class_map=None)
    assert dataset.filename(0, basename=True).endswith(".png") and dataset.reader.class_to_idx
    loader = torch.utils.data.DataLoader(dataset, None, num_workers=1, multiprocessing_context=sys.argv[3])
    picture, label = next(iter(loader))
    classes = timm.create_model(sys.argv[1], device="meta").num_classes
    print(sys.argv[0], classes, picture.getpixel((0, 0)), len(dataset))
"""


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_the_command_runs_a_script_on_upright_pictures(tmp_path, context):
    """A transparent corner is white, as in the core; the colour stored under it is black."""
    (tmp_path / "val" / "lion").mkdir(parents=True)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "val/lion/a.png")
    (tmp_path / "val/lion/broken.png").write_bytes(b"no picture")
    (tmp_path / "script.py").write_text(STAND_IN)
    command = [sys.executable, "-m", "hcast_zoo", "timm", "script.py", "hcast_tiny", str(tmp_path), context]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[0] == "script.py 1000 (255, 255, 255) 2"


def test_the_command_explains_what_is_wrong(tmp_path, capsys):
    assert main(["timm", str(tmp_path / "train.py"), "--model", "hcast_small"]) == 2
    assert "no such script" in capsys.readouterr().err

    (tmp_path / "train.py").write_text("import sys\nif sys.argv[1:]: sys.exit(3)\nraise ValueError('mine')")
    assert main(["timm", str(tmp_path / "train.py")]) == 1
    assert "ValueError: mine" in capsys.readouterr().err and timm.data.dataset.create_reader is create_reader
    with pytest.raises(SystemExit, match="3"):
        main(["timm", str(tmp_path / "train.py"), "--help"])


def test_a_broken_picture_gives_way_to_the_next(tmp_path):
    """As in timm's own data set."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"no picture")
    dataset = ImageDataset(str(tmp_path), reader=UprightReader(create_reader("", root=str(tmp_path))))
    assert [dataset[i][0].getpixel((0, 0)) for i in range(2)] == [(255, 0, 0)] * 2


def make_loader(folder, model, args, training):
    config = resolve_input_data_config(model, vars(args))
    dataset = create_dataset("", root=folder, split="train" if training else "val", is_training=training)
    return create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=4,
        is_training=training,
        use_prefetcher=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=0,
        crop_pct=config["crop_pct"],
    )


def test_a_trained_model_is_saved_and_validated(picture_folder, tmp_path):
    """As by train.py with --img-size 64 --num-classes 6 --layer-decay 0.7 --model-ema --grad-checkpointing."""
    args = Namespace(img_size=64, input_size=None, in_chans=None, mean=None, std=None, model_kwargs=SIZE_FREE)
    torch.manual_seed(0)
    options = dict(num_classes=6, drop_rate=0.1, drop_path_rate=0.1, **SIZE_FREE)
    model = timm.create_model(**resolve_model_input_args("hcast_tiny", vars(args), **options))
    assert model.config.image_size == 64 and model.config.num_superpixels == 16  # 36 for the 96 pixels of the tag
    model.set_grad_checkpointing(enable=True)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 4
    ema = ModelEmaV3(model, decay=0.9)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path))
    losses = []
    for _ in range(2):
        for images, target in make_loader(picture_folder, model.train(), args, training=True):
            loss = torch.nn.functional.cross_entropy(model(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(model)
            losses.append(loss.item())
    assert all(torch.isfinite(torch.tensor(losses)))
    saver.save_checkpoint(0, metric=1.0)

    loaded = timm.create_model("hcast_tiny", num_classes=6, img_size=64, **SIZE_FREE).eval()
    load_checkpoint(loaded, str(tmp_path / "last.pth.tar"), use_ema=True)
    with torch.inference_mode():
        for images, target in make_loader(picture_folder, loaded, args, training=False):
            logits = loaded(images)
            assert torch.equal(logits, ema.module.eval()(images))
            top1, top5 = accuracy(logits, target, topk=(1, 5))
            assert 0 <= top1 <= top5 <= 100


@pytest.mark.parametrize(
    "classes, trained",
    [
        (dict(num_classes=6), {"stem", "stages.0", "stages.1", "stages.2", "stages.3", "norm", "heads.0"}),
        (dict(level_classes=(2, 3, 6)), {"stem", "stages.0", "stages.1", "heads.2"}),
    ],
)
def test_training_reaches_the_finest_level_and_its_stages(classes, trained):
    """In a flat model that is every parameter. Under torchrun, train.py's DDP stops if one has no gradient."""
    torch.manual_seed(0)
    model = timm.create_model("hcast_tiny", **TINY, **classes).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    parts = {re.match(r"(?:heads|stages)\.\d+|\w+", name)[0] for name in reached}
    assert parts == trained | {"cls_token", "pos_embed"}
    assert (reached == {name for name, _ in model.named_parameters()}) == ("num_classes" in classes)


@pytest.mark.parametrize("given, used", [({}, "grid"), ({"superpixels": "slic"}, "slic")])
def test_exportable_models_match_their_trace(given, used):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = timm.create_model("hcast_tiny", num_classes=6, exportable=True, **TINY, **given).eval()
    assert model.config.superpixels == used
    assert any("grid superpixels" in str(warning.message) for warning in caught) == (used == "grid")
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))


def test_traces_warn_that_seeds_become_a_grid():
    model = timm.create_model("hcast_tiny", num_classes=6, **TINY).eval()
    with pytest.warns(UserWarning, match="grid superpixels in place of SEEDS"):
        torch.jit.trace(model, torch.randn(2, 3, 32, 32), check_trace=False)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_graphs_warn_that_seeds_become_a_grid(strict):
    model = timm.create_model("hcast_tiny", num_classes=6, **TINY).eval()
    x, segments = torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.int64)
    with pytest.warns(UserWarning, match="grid superpixels in place of SEEDS"):
        torch.export.export(model, (x,), strict=strict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.export.export(model, (x, segments), strict=strict)


def test_other_sizes_give_a_warning():
    with pytest.warns(UserWarning, match=r"96x96 pixels at 128x128: .* 64 superpixels in place of 36 .*clusters are"):
        model = timm.create_model("hcast_tiny", pretrained=True, img_size=128).eval()
    assert (model.config.num_superpixels, model.pos_embed.shape[1]) == (64, 1 + 16 * 16)
    with pytest.warns(UserWarning, match=r"images of 96x96 pixels in a model for 128x128: .* 64 superpixels as before"):
        model(torch.zeros(1, 3, 96, 96))
    with pytest.warns(UserWarning, match=r"128x128 pixels at 96x96: .* 36 superpixels in place of 64"):
        model.set_input_size(96)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        timm.create_model("hcast_tiny", img_size=128)  # no weights
        timm.create_model("hcast_tiny", pretrained=True).eval()(torch.zeros(1, 3, 96, 96))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo, given", [(False, {}), (True, {}), (True, {"superpixels": "slic"})])
def test_onnx_export_matches_the_model(tmp_path, dynamo, given):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from timm.utils.onnx import onnx_export

    torch.manual_seed(0)
    model = timm.create_model("hcast_tiny", num_classes=6, exportable=True, **TINY, **given)
    options = dict(batch_size=2, input_size=(3, 32, 32), check_forward=True, use_dynamo=dynamo)
    onnx_export(model, str(tmp_path / "model.onnx"), **options)
    assert (tmp_path / "model.onnx").stat().st_size > 10_000
