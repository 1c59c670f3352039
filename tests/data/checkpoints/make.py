"""Makes the files of this folder, once: python tests/data/checkpoints/make.py (needs torch; made with 2.13.0).

One small training checkpoint as PyTorch writes it, in its zip and in its older format, with the kinds of tensors
and the plain data that such files hold; `expected.npz` has the tensors' values in float64.
"""

import argparse
import collections
import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent

torch.manual_seed(0)
state = collections.OrderedDict(
    transposed=torch.randn(3, 4).t(),
    slice=torch.randn(20)[5:15:2],
    bfloat16=torch.randn(3).bfloat16(),
    half=torch.randn(3).half(),
    double=torch.randn(2).double(),
    parameter=torch.nn.Parameter(torch.randn(2, 2)),
    empty=torch.zeros(0, 3),
    scalar=torch.tensor(7),
    shared=torch.arange(4.0),
)
state["shared_too"] = state["shared"][1:]
model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
state.update(model.state_dict())
checkpoint = {
    "epoch": 3,
    "state_dict": state,
    "state_dict_ema": {name: tensor.clone() for name, tensor in state.items()} | {"scalar": torch.tensor(8)},
    "args": argparse.Namespace(lr=0.1, size=torch.Size([3]), device=torch.device("cpu"), dtype=torch.float32),
    "metric": np.float64(0.5),
    "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
}
torch.save(checkpoint, HERE / "zip.pth.tar")
torch.save(checkpoint, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
np.savez_compressed(HERE / "expected.npz", **{name: t.detach().double().numpy() for name, t in state.items()})
