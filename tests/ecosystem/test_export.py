"""torch.export and ONNX of exported models, and torch.export of a model that still has shadow layers."""

import runpy
from pathlib import Path

import pytest
import torch
import watnn
from torch import nn
from watnn.transforms import WAT, Compose, MultiplicativeNoise, RandomAffine

EXAMPLE = Path(__file__).parents[2] / "examples/export_onnx.py"
ANY_BATCH = ({0: torch.export.Dim("batch")},)


def network():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, groups=8, padding=2),
        nn.Flatten(),
        nn.Linear(8 * 64, 5),
    )
    model = watnn.convert(model, Compose([RandomAffine(0, translate=(0.4, 0.4)), MultiplicativeNoise(0.1)]))
    model = watnn.convert(model, MultiplicativeNoise(0.1), include=nn.Linear, gain="layer")
    nn.init.uniform_(model[5].gain, 0.5, 2)
    for _ in range(3):  # statistics that are not BatchNorm's initial ones
        model(torch.randn(8, 3, 8, 8))
    return model.eval()


@pytest.mark.parametrize("arguments", [{"mode": "aom"}, {"mode": "dom", "key": 3}, {"mode": "dom", "key": 4}], ids=str)
def test_torch_export_of_an_exported_model(arguments, tmp_path):
    plain = watnn.export(network(), **arguments)
    program = torch.export.export(plain, (torch.randn(2, 3, 8, 8),), dynamic_shapes=ANY_BATCH)
    torch.export.save(program, tmp_path / "model.pt2")
    x = torch.randn(7, 3, 8, 8)
    torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), plain(x))


@pytest.mark.parametrize("backend", ["auto", "library", "reference"])
def test_torch_export_of_a_model_with_shadow_layers(backend):
    model, x = network(), torch.randn(7, 3, 8, 8)
    for _, layer in watnn.layers.shadow_layers(model):
        layer.backend = backend
    for switch in (lambda: watnn.aom(model), lambda: watnn.dom(model, key=3)):
        switch()
        program = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=ANY_BATCH)
        torch.testing.assert_close(program.module()(x), model(x))
    watnn.dom(model)  # a fresh draw at each run of the program, from torch's generator
    program = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=ANY_BATCH).module()
    outputs = []
    for run in (program, model):
        torch.manual_seed(5)
        outputs.append([run(x), run(x)])
    torch.testing.assert_close(*outputs)
    assert not torch.allclose(*outputs[0])


@pytest.mark.parametrize("mode", ["aom", "dom"])
def test_onnxruntime_computes_what_the_exported_model_does(mode):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    for key in (2, 3) if mode == "dom" else (None,):
        plain = watnn.export(network(), mode=mode, key=key)
        program = torch.onnx.export(
            plain, (torch.randn(2, 3, 8, 8),), dynamo=True, dynamic_shapes=ANY_BATCH, verbose=False
        )
        assert_onnx_equals(onnxruntime, program.model_proto.SerializeToString(), plain, torch.randn(7, 3, 8, 8))


def test_the_example(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = watnn.convert(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), WAT()), torch.randn(7, 3, 8, 8)
    plain = runpy.run_path(str(EXAMPLE))["export"](model, x[:2], tmp_path)
    assert_onnx_equals(onnxruntime, str(tmp_path / "model.onnx"), plain, x)
    with watnn.dom(model, key=7):
        expected = model(x)
    torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), expected)


def assert_onnx_equals(onnxruntime, model, plain, x):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), plain(x), atol=1e-5, rtol=1e-4)
