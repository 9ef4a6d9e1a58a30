"""Proves that the wheel holds searchseg alone, and that it segments with nothing else of ours."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "hub" / "models" / "searchnet-pet"
# what `pip install .` does not bring
ABSENT = ("gradio", "datasets", "accelerate", "timm", "torchvision", "torchmetrics", "matplotlib")
SCRIPT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import searchseg

segmenter = searchseg.Segmenter.from_pretrained({str(SHIPPED)!r})
result = segmenter("picture.png")
print(searchseg.__file__, result.mask.shape, sorted(result.shares))

from searchseg import segment

print("status", segment.main(["picture.png", "--model", {str(SHIPPED)!r}, "--out", "masks"]))
"""


HEAVY = (*ABSENT, "onnx", "onnxruntime", "onnxscript", "segmentation_models_pytorch", "huggingface_hub")
IMPORT = f"""
import sys, torch

before = set(sys.modules)
import searchseg, searchseg.segment

roots = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(roots & set({HEAVY!r})))
"""


def test_importing_the_library_imports_nothing_that_takes_long():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", *build, "--disable-pip-version-check"], check=True, cwd=out)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    code = {name for name in names if ".dist-info/" not in name}
    library = {str(path.relative_to(ROOT)) for path in (ROOT / "searchseg").rglob("*.py")}
    assert code == library
    (metadata,) = (name for name in names if name.endswith("/METADATA"))
    assert "Name: searchseg" in zipfile.ZipFile(wheel).read(metadata).decode()


def test_it_segments_where_nothing_else_is_installed(wheel, tmp_path):
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "picture.png")
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed) in answer.stdout and "(30, 40) ['background', 'pet']" in answer.stdout
    assert "status 0" in answer.stdout and (tmp_path / "masks" / "picture.png.mask.png").is_file()
