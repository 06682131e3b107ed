"""Bad arguments: one error that names the argument, what came and what is accepted, before any work is done."""

import math

import pytest
import torch
from watnn.transforms import (
    Compose,
    DropConnect,
    FromCallable,
    Identity,
    MultiplicativeNoise,
    RandomAffine,
    RandomApply,
    RandomChoice,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    TapDensity,
)
from watnn.transforms import functional as TF

from wat_kernels.noise import Noise

NAN, INF = math.nan, math.inf
FLIP, DROP = RandomHorizontalFlip(), DropConnect(0.1)

CONSTRUCTORS = [
    (lambda: RandomAffine(-1), ValueError, r"degrees=-1; accepted is a finite number >= 0"),
    (lambda: RandomAffine(NAN), ValueError, r"degrees=nan"),
    (lambda: RandomAffine((0, INF)), ValueError, r"degrees\[1\]=inf"),
    (lambda: RandomAffine((10, -10)), ValueError, r"degrees=\(10, -10\) is reversed"),
    (lambda: RandomAffine((1, 2, 3)), ValueError, r"degrees=\(1, 2, 3\) has 3 entries"),
    (lambda: RandomAffine("10"), TypeError, r"degrees='10'"),
    (lambda: RandomAffine(None), TypeError, r"degrees=None"),
    (lambda: RandomAffine(True), TypeError, r"degrees=True"),
    (lambda: RandomAffine(("a", 1)), TypeError, r"degrees\[0\]='a'"),
    (lambda: RandomAffine(0, translate=(1.1, 0)), ValueError, r"translate\[0\]=1.1; accepted is a number in \[0, 1\]"),
    (lambda: RandomAffine(0, translate=(0, -0.1)), ValueError, r"translate\[1\]=-0.1"),
    (lambda: RandomAffine(0, translate=(NAN, 0)), ValueError, r"translate\[0\]=nan"),
    (lambda: RandomAffine(0, translate=0.3), TypeError, r"translate=0.3; accepted is 2 numbers"),
    (lambda: RandomAffine(0, translate=(0.1,)), ValueError, r"translate=\(0.1,\) has 1 entries"),
    (lambda: RandomAffine(0, scale=(0, 1)), ValueError, r"scale\[0\]=0; accepted is a finite number > 0"),
    (lambda: RandomAffine(0, scale=(-1, 1)), ValueError, r"scale\[0\]=-1"),
    (lambda: RandomAffine(0, scale=(2, 1)), ValueError, r"scale=\(2, 1\) is reversed"),
    (lambda: RandomAffine(0, scale=1.0), TypeError, r"scale=1.0"),
    (lambda: RandomAffine(0, scale=(1, NAN)), ValueError, r"scale\[1\]=nan"),
    (lambda: RandomAffine(0, shear=-5), ValueError, r"shear=-5"),
    (lambda: RandomAffine(0, shear=(5, -5)), ValueError, r"shear=\(5, -5\) is reversed"),
    (lambda: RandomAffine(0, shear=(1, 2, 3)), ValueError, r"shear=\(1, 2, 3\) has 3 entries"),
    (lambda: RandomAffine(0, shear=(1, 2, 4, 3)), ValueError, r"shear\[2:4\]=\(4, 3\) is reversed"),
    (lambda: RandomAffine(0, shear=(0, 90)), ValueError, r"other than 90 degrees"),
    (lambda: RandomAffine(0, shear="x"), TypeError, r"shear='x'"),
    (lambda: RandomAffine(0, interpolation="bicubic"), ValueError, r"interpolation='bicubic'; accepted is 'nearest'"),
    (lambda: RandomAffine(0, interpolation=2), ValueError, r"interpolation=2"),
    (lambda: RandomAffine(0, center=(1,)), ValueError, r"center=\(1,\) has 1 entries"),
    (lambda: RandomAffine(0, center=1), TypeError, r"center=1"),
    (lambda: RandomAffine(0, center=(NAN, 0)), ValueError, r"center\[0\]=nan"),
    (lambda: RandomAffine(0, num_maps=0), ValueError, r"num_maps=0; accepted is an integer >= 1"),
    (lambda: RandomAffine(0, num_maps=2.5), TypeError, r"num_maps=2.5"),
    (lambda: RandomAffine(0, fill=1), TypeError, r"fill"),
    (lambda: RandomRotation(-90), ValueError, r"degrees=-90"),
    (lambda: RandomRotation((NAN, 1)), ValueError, r"degrees\[0\]=nan"),
    (lambda: RandomRotation(90, expand=True), ValueError, r"expand=True; accepted is False"),
    (lambda: RandomRotation(90, "lanczos"), ValueError, r"interpolation='lanczos'"),
    (lambda: RandomRotation(90, num_maps=True), TypeError, r"num_maps=True"),
    (lambda: RandomResizedCrop((0, 1)), ValueError, r"scale\[0\]=0"),
    (lambda: RandomResizedCrop((1, 0.5)), ValueError, r"scale=\(1, 0.5\) is reversed"),
    (lambda: RandomResizedCrop(3), TypeError, r"scale=3"),
    (lambda: RandomResizedCrop((0.5, INF)), ValueError, r"scale\[1\]=inf"),
    (lambda: RandomResizedCrop(ratio=(0, 1)), ValueError, r"ratio\[0\]=0"),
    (lambda: RandomResizedCrop(ratio=(-1, 1)), ValueError, r"ratio\[0\]=-1"),
    (lambda: RandomResizedCrop(ratio=(2, 1)), ValueError, r"ratio=\(2, 1\) is reversed"),
    (lambda: RandomResizedCrop(interpolation="area"), ValueError, r"interpolation='area'"),
    (lambda: RandomHorizontalFlip(1.5), ValueError, r"p=1.5; accepted is a number in \[0, 1\]"),
    (lambda: RandomHorizontalFlip(NAN), ValueError, r"p=nan"),
    (lambda: RandomVerticalFlip(-0.1), ValueError, r"p=-0.1"),
    (lambda: RandomVerticalFlip("half"), TypeError, r"p='half'"),
    (lambda: RandomChoice([]), ValueError, r"transforms=\[\] is empty"),
    (lambda: RandomChoice(FLIP), TypeError, r"transforms=RandomHorizontalFlip\(\); accepted by RandomChoice"),
    (lambda: RandomChoice([FLIP, 3]), TypeError, r"transforms\[1\]=3.*FromCallable"),
    (lambda: RandomChoice([FLIP, DROP]), ValueError, r"transforms\[1\]=DropConnect\(p=0.1\) has noise"),
    (lambda: RandomChoice([Compose([FLIP, DROP])]), ValueError, r"transforms\[0\]=Compose.* has noise"),
    (lambda: RandomChoice([FLIP, FLIP], p=[1.0]), ValueError, r"p=\[1.0\] has 1 entries; accepted is 2 numbers"),
    (lambda: RandomChoice([FLIP, FLIP], p=[0.5, 0.6]), ValueError, r"p=\[0.5, 0.6\] sums to 1.1"),
    (lambda: RandomChoice([FLIP, FLIP], p=[1.5, -0.5]), ValueError, r"p\[0\]=1.5"),
    (lambda: RandomChoice([FLIP, FLIP], p=0.5), TypeError, r"p=0.5"),
    (lambda: RandomApply([]), ValueError, r"transforms=\[\] is empty"),
    (lambda: RandomApply(FLIP, p=2), ValueError, r"p=2"),
    (lambda: RandomApply(torch.relu), TypeError, r"transforms=.*accepted by RandomApply"),
    (lambda: RandomApply(DROP), ValueError, r"transforms\[0\]=DropConnect\(p=0.1\) has noise"),
    (lambda: Compose([]), ValueError, r"transforms=\[\] is empty"),
    (lambda: Compose([DROP, FLIP]), ValueError, r"transforms\[0\]=DropConnect.* has noise and RandomHorizontalFlip"),
    (lambda: Compose([FLIP, DROP, DROP]), ValueError, r"at most one noise, last"),
    (lambda: Compose([Compose([FLIP, DROP]), FLIP]), ValueError, r"at most one noise, last"),
    (lambda: Compose([torch.relu]), TypeError, r"wrap any other callable in FromCallable"),
    (lambda: TapDensity([]), ValueError, r"density=\[\]"),
    (lambda: TapDensity([[1, 2], [3]]), ValueError, r"density=.*rows of one length"),
    (lambda: TapDensity([1, 2]), TypeError, r"density=\[1, 2\]"),
    (lambda: TapDensity([[1, NAN]]), ValueError, r"density\[0\]\[1\]=nan"),
    (lambda: TapDensity([["a"]]), TypeError, r"density\[0\]\[0\]='a'"),
    (lambda: TapDensity(torch.ones(1, 3, 3)), TypeError, r"density\[0\]\[0\]=\[1.0, 1.0, 1.0\]"),
    (lambda: TapDensity(2.0), TypeError, r"density=2.0"),
    (lambda: FromCallable(3), TypeError, r"fn=3; accepted is a callable"),
    (lambda: FromCallable(torch.relu, 0), ValueError, r"num_maps=0"),
    (lambda: MultiplicativeNoise(-0.1), ValueError, r"std=-0.1"),
    (lambda: MultiplicativeNoise(INF), ValueError, r"std=inf"),
    (lambda: MultiplicativeNoise("a"), TypeError, r"std='a'"),
    (lambda: DropConnect(1.0), ValueError, r"p=1.0; accepted is a probability 0 <= p < 1"),
    (lambda: DropConnect(-0.5), ValueError, r"p=-0.5"),
    (lambda: DropConnect(NAN), ValueError, r"p=nan"),
    (lambda: Noise("gauss", 0.1), ValueError, r"kind='gauss'"),
    (lambda: Noise("multiplicative", NAN), ValueError, r"amount=nan"),
    (lambda: Noise("dropconnect", 1), ValueError, r"amount=1"),
    (lambda: Noise("dropconnect", None), TypeError, r"amount=None"),
]


@pytest.mark.parametrize(("make", "error", "message"), CONSTRUCTORS)
def test_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("size", "error"),
    [
        (0, ValueError),
        (-3, ValueError),
        ((3, 0), ValueError),
        ((3,), ValueError),
        ((3, 3, 3), ValueError),
        (3.0, TypeError),
        ((3, 3.0), TypeError),
        (True, TypeError),
        ("33", TypeError),
        (None, TypeError),
    ],
)
@pytest.mark.parametrize(
    "use",
    [FLIP.tap_table, Identity().tap_table, FLIP.plot, TF.hflip, lambda size: TF.rotate(size, 10)],
    ids=["tap_table", "identity", "plot", "hflip", "rotate"],
)
def test_kernel_size(use, size, error):
    with pytest.raises(error, match=r"kernel_size=.*; accepted is a positive integer or two positive integers"):
        use(size)


FUNCTIONS = [
    (lambda: TF.affine(3, NAN, (0, 0), 1, 0), ValueError, "angle=nan"),
    (lambda: TF.affine(3, 0, 1, 1, 0), TypeError, "translate=1"),
    (lambda: TF.affine(3, 0, (0, INF), 1, 0), ValueError, r"translate\[1\]=inf"),
    (lambda: TF.affine(3, 0, (0, 0), 0, 0), ValueError, "scale=0; accepted is a finite number > 0"),
    (lambda: TF.affine(3, 0, (0, 0), 1, (1, 2, 3)), ValueError, "shear="),
    (lambda: TF.affine(3, 0, (0, 0), 1, 0, "cubic"), ValueError, "interpolation='cubic'"),
    (lambda: TF.rotate(3, "x"), TypeError, "angle='x'"),
    (lambda: TF.rotate(3, 0, center=(1, 2, 3)), ValueError, "center="),
    (lambda: TF.resized_crop(3, 0.5, 0, 1, 1), TypeError, "top=0.5"),
    (lambda: TF.resized_crop(3, 0, None, 1, 1), TypeError, "left=None"),
    (lambda: TF.resized_crop(3, 0, 0, 0, 1), ValueError, r"\(height, width\)=\(0, 1\)"),
    (lambda: TF.resized_crop(3, 0, 0, 1, 1, "lanczos"), ValueError, "interpolation='lanczos'"),
]


@pytest.mark.parametrize(("make", "error", "message"), FUNCTIONS)
def test_function(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_density_of_another_size():
    with pytest.raises(ValueError, match=r"kernel_size=\(3, 3\); accepted is \(1, 3\)"):
        TapDensity([[1, 2, 3]]).tap_table(3)


def test_crop_that_rounds_to_nothing():
    with pytest.raises(ValueError, match=r"ratio=\(0.1, 0.3\).*rounds to nothing"):
        RandomResizedCrop(ratio=(0.1, 0.3)).tap_table((1, 7))
