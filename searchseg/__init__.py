"""SearchSeg: load, run and build segmentation networks found by architecture search.

segmenter = searchseg.Segmenter.from_pretrained("folder-or-hub-id")
result = segmenter("photo.jpg")
result.cutout().save("cutout.png")
"""

from searchseg.baselines import UNet, UNetConfig
from searchseg.config import ConfigError, ModelConfig
from searchseg.drawing import draw
from searchseg.genotype import Edge, Genotype, GenotypeError
from searchseg.images import ImageError, read_image
from searchseg.loss import dice_cross_entropy_loss, dice_loss
from searchseg.metric import ConfusionMatrix
from searchseg.network import SearchNet, UShapeConfig, USpace
from searchseg.pretrained import PretrainedError, from_pretrained, save_pretrained
from searchseg.segmenter import Segmentation, Segmenter
from searchseg.task import Task, TaskError

__version__ = "0.1.0"

__all__ = [
    "ConfigError", "ConfusionMatrix", "Edge", "Genotype", "GenotypeError", "ImageError", "ModelConfig",
    "PretrainedError", "SearchNet", "Segmentation", "Segmenter", "Task", "TaskError", "UNet", "UNetConfig",
    "UShapeConfig", "USpace", "dice_cross_entropy_loss", "dice_loss", "draw", "from_pretrained", "read_image",
    "save_pretrained",
]  # fmt: skip
