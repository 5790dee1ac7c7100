"""The kernel that samples on a GPU, run by Triton's interpreter on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hcast_zoo.network.graph_pooling import farthest_point_sampling

pytest.importorskip("triton", reason="the kernel needs Triton")
pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parents[1] / "fixtures"
PROGRAM = """
import json, sys
import numpy as np
import torch
import hcast_zoo.network.graph_pooling as graph_pooling
from hcast_zoo.network.sampling_kernel import choose_centres

calls = []
def counted(*arguments):
    calls.append(arguments[-1])
    return choose_centres(*arguments)
graph_pooling.choose_step_by_step = counted

same = {}
for name in ("tiny_2level", "tiny_3level"):
    with np.load(f"{sys.argv[1]}/{name}_tensors.npz") as tensors:
        for stage in range(1, 5):
            points = torch.from_numpy(tensors[f"stage{stage}_out"])[:, 1:]
            expected = torch.from_numpy(tensors[f"pool{stage}_inds"])
            valid = torch.from_numpy(tensors[f"stage{stage}_pad_mask"]).logical_not()
            indices = graph_pooling.farthest_point_sampling(points, expected.shape[1], valid)
            same[f"{name} {stage}"] = torch.equal(indices, expected)

cases = torch.load(sys.argv[2])["cases"]
chosen = [graph_pooling.farthest_point_sampling(*case) for case in cases]
traced = torch.compile(choose_centres, backend="aot_eager", fullgraph=True, dynamic=False)

torch.manual_seed(0)
distances = torch.rand(2, 9, 9)
arguments = distances, distances[:, 0], torch.zeros(2, 1), 4
compiled = torch.equal(traced(*arguments), choose_centres(*arguments))

nan = torch.full((1, 3, 3), torch.nan)
inside = choose_centres(nan, nan[:, 0], torch.zeros(1, 1), 2).max().item() < 3

torch.library.opcheck(choose_centres, arguments)
torch.save(chosen, sys.argv[2])
print(json.dumps({"same": same, "calls": len(calls), "compiled": compiled, "inside": inside}))
"""


def test_kernel_chooses_what_torch_chooses(tmp_path):
    torch.manual_seed(0)
    valid = torch.rand(3, 40) > 0.4
    few = torch.zeros(3, 40, dtype=torch.bool)
    few[:, 5:8] = True
    square = torch.tensor([[[1.0, 1], [1, -1], [-1, 1], [-1, -1]]])  # ties
    copies = torch.randn(1, 3, 8).repeat(1, 5, 1)
    cases = [
        (torch.randn(3, 40, 6), 12, valid),
        (torch.randn(3, 40, 6), 12, few),
        (torch.randn(2, 196, 16), 64, None),
        (square, 4, None),
        (copies, 9, None),
        (torch.ones(1, 1, 3), 2, None),
    ]
    file = tmp_path / "cases.pt"
    torch.save({"cases": cases}, file)

    # In a new process: Triton's decorator reads the environment on import.
    command = [sys.executable, "-c", PROGRAM, str(FIXTURES), str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)

    assert len(report["same"]) == 8 and all(report["same"].values()), report
    assert report["calls"] == 8 + len(cases) and report["compiled"] and report["inside"]
    for case, chosen in zip(cases, torch.load(file)):
        assert torch.equal(chosen, farthest_point_sampling(*case))
