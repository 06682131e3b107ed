"""Random transforms of a layer's weight, with the arguments and semantics of torchvision's classes of the same name."""

from watnn.transforms import functional
from watnn.transforms.affine import RandomAffine, RandomRotation
from watnn.transforms.base import ElementwiseNoise, GridTransform, Transform
from watnn.transforms.combine import WAT, Compose, Identity, RandomApply, RandomChoice
from watnn.transforms.crop import RandomResizedCrop
from watnn.transforms.density import TapDensity
from watnn.transforms.flips import RandomHorizontalFlip, RandomVerticalFlip
from watnn.transforms.from_callable import FromCallable
from watnn.transforms.noise import DropConnect, MultiplicativeNoise

__all__ = [
    "WAT",
    "Compose",
    "DropConnect",
    "ElementwiseNoise",
    "FromCallable",
    "GridTransform",
    "Identity",
    "MultiplicativeNoise",
    "RandomAffine",
    "RandomApply",
    "RandomChoice",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomVerticalFlip",
    "TapDensity",
    "Transform",
    "functional",
]
