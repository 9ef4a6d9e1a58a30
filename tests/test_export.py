"""Proves that the ONNX file gives what torch gives, at any size, and that a wrong file is never kept."""

import pytest
import torch

import hub.export
from hub.export import ExportError, check_onnx, export_onnx, main
from searchseg import ModelConfig, save_pretrained
from searchseg.baselines import UNet
from searchseg.genotype import random_genotype
from searchseg.network import SearchNet, UShapeConfig

pytest.importorskip("onnxscript", reason="onnxscript is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.mark.parametrize(
    "make",
    [
        lambda: SearchNet(UShapeConfig((2, 2, 4, 4), 1, 2, 3), random_genotype(1, seed=1)),
        lambda: UNet((4, 8, 8), 3),
    ],
    ids=["searchnet", "unet"],
)
def test_onnx_agrees_with_torch_at_every_size(make, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    assert export_onnx(model, tmp_path / "model.onnx") < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for shape in ((1, 3, 16, 16), (2, 3, 33, 97), (1, 3, 128, 64)):
        image = torch.randn(shape)
        (scores,) = session.run(["scores"], {"image": image.numpy()})
        assert abs(scores - model(image).detach().numpy()).max() < 1e-3


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.export, "_difference", lambda model, path: 0.5)
    (tmp_path / "model.onnx").write_text("old")
    with pytest.raises(ExportError, match="differs"):
        export_onnx(UNet((2, 4)).eval(), tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "old"


def test_the_command_writes_into_a_model_folder(tmp_path, capsys):
    folder, arguments = tmp_path / "model", {"widths": [2, 4], "num_classes": 2}
    config = ModelConfig("unet", arguments, ("dark", "light"), ("#000000", "#ffffff"), (32, 32))
    save_pretrained(UNet((2, 4)), folder, config)
    assert main([str(folder), "--onnx"]) == 0
    assert (folder / "model.onnx").stat().st_size > 1000 and "torch within" in capsys.readouterr().out
    assert main([str(tmp_path), "--onnx"]) == 1 and "config.json is missing" in capsys.readouterr().err


def test_a_file_of_other_weights_or_none_at_all_is_told(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, path = UNet((2, 4)).eval(), tmp_path / "model.onnx"
    export_onnx(model, path)
    check_onnx(model, path)
    with pytest.raises(ExportError, match=r"differs from the model by .* write it again"):
        check_onnx(UNet((2, 4)).eval(), path)
    path.write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"cannot be run .* or remove it"):
        check_onnx(model, path)
    monkeypatch.setattr(hub.export, "_difference", lambda model, path: None)
    with pytest.raises(ExportError, match="pip install onnxruntime, or remove it"):
        check_onnx(model, path)
