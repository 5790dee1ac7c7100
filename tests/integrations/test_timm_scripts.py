"""What timm's train.py, validate.py, inference.py, benchmark.py and onnx_export.py do, on a tiny model.

The scripts are in timm's repository and in none of its packages; these tests make the same calls in the same order.
"""

import re
import subprocess
import sys
from argparse import Namespace

import pytest
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_input_data_config
from timm.models import load_checkpoint, resolve_model_input_args
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ModelEmaV3, accuracy

from tests.integrations.test_timm_model import TINY

SIZE_FREE = {k: v for k, v in TINY.items() if k not in ("img_size", "num_superpixels")}
STAND_IN = """
import sys, timm
assert __name__ == "__main__" and sys.argv[1:] == ["--model", "hcast_small"]
print(sys.argv[0], timm.create_model(sys.argv[2], device="meta").num_classes)
"""


def test_the_pages_line_runs_a_script(tmp_path, request):
    page = (request.config.rootpath / "docs/timm.md").read_text()
    command = re.search(r"python -c \"(.+?)\" train\.py", page)[1]
    (tmp_path / "train.py").write_text(STAND_IN)
    result = subprocess.run(
        [sys.executable, "-c", command, "train.py", "--model", "hcast_small"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["train.py", str(timm.create_model("hcast_small", device="meta").num_classes)]


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


def test_train_and_validate(picture_folder, tmp_path):
    """As train.py does with --img-size 64 --num-classes 6 --layer-decay 0.7 --model-ema --grad-checkpointing."""
    args = Namespace(img_size=64, input_size=None, in_chans=None, mean=None, std=None, model_kwargs=SIZE_FREE)
    torch.manual_seed(0)
    model = timm.create_model(
        **resolve_model_input_args(
            "hcast_tiny", vars(args), num_classes=6, drop_rate=0.1, drop_path_rate=0.1, **SIZE_FREE
        )
    )
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
def test_train_reaches_the_finest_level_and_the_stages_it_reads(classes, trained):
    """Of a flat model that is every parameter; DDP, in train.py under torchrun, stops where one has no gradient."""
    torch.manual_seed(0)
    model = timm.create_model("hcast_tiny", **TINY, **classes).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    parts = {re.match(r"(?:heads|stages)\.\d+|\w+", name)[0] for name in reached}
    assert parts == trained | {"cls_token", "pos_embed"}
    assert (reached == {name for name, _ in model.named_parameters()}) == ("num_classes" in classes)


@pytest.mark.parametrize("given, used", [({}, "grid"), ({"superpixels": "slic"}, "slic")])
def test_exportable_models_give_what_their_trace_gives(given, used):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    model = timm.create_model("hcast_tiny", num_classes=6, exportable=True, **TINY, **given).eval()
    assert model.config.superpixels == used
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo, given", [(False, {}), (True, {}), (True, {"superpixels": "slic"})])
def test_onnx_export(tmp_path, dynamo, given):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from timm.utils.onnx import onnx_export

    torch.manual_seed(0)
    model = timm.create_model("hcast_tiny", num_classes=6, exportable=True, **TINY, **given)
    onnx_export(
        model, str(tmp_path / "model.onnx"), batch_size=2, input_size=(3, 32, 32), check_forward=True, use_dynamo=dynamo
    )
