"""Bad arguments: one error that names the argument, what came and what is accepted, before any work is done."""

import math

import pytest
import torch
from watnn import transforms as T
from watnn.transforms import functional as TF

from wat_kernels.noise import Noise

NAN, INF = math.nan, math.inf
FLIP, DROP = T.RandomHorizontalFlip(), T.DropConnect(0.1)

CONSTRUCTORS = [
    (lambda: T.RandomAffine(-1), ValueError, r"degrees=-1; accepted is a finite number >= 0"),
    (lambda: T.RandomAffine(NAN), ValueError, r"degrees=nan"),
    (lambda: T.RandomAffine((0, INF)), ValueError, r"degrees\[1\]=inf"),
    (lambda: T.RandomAffine((10, -10)), ValueError, r"degrees=\(10, -10\) is reversed"),
    (lambda: T.RandomAffine((1, 2, 3)), ValueError, r"degrees=\(1, 2, 3\) has 3 entries"),
    (lambda: T.RandomAffine("10"), TypeError, r"degrees='10'"),
    (lambda: T.RandomAffine(None), TypeError, r"degrees=None"),
    (lambda: T.RandomAffine(True), TypeError, r"degrees=True"),
    (lambda: T.RandomAffine(("a", 1)), TypeError, r"degrees\[0\]='a'"),
    (
        lambda: T.RandomAffine(0, translate=(1.1, 0)),
        ValueError,
        r"translate\[0\]=1.1; accepted is a number in \[0, 1\]",
    ),
    (lambda: T.RandomAffine(0, translate=(0, -0.1)), ValueError, r"translate\[1\]=-0.1"),
    (lambda: T.RandomAffine(0, translate=(NAN, 0)), ValueError, r"translate\[0\]=nan"),
    (lambda: T.RandomAffine(0, translate=0.3), TypeError, r"translate=0.3; accepted is 2 numbers"),
    (lambda: T.RandomAffine(0, translate=(0.1,)), ValueError, r"translate=\(0.1,\) has 1 entries"),
    (lambda: T.RandomAffine(0, scale=(0, 1)), ValueError, r"scale\[0\]=0; accepted is a finite number > 0"),
    (lambda: T.RandomAffine(0, scale=(-1, 1)), ValueError, r"scale\[0\]=-1"),
    (lambda: T.RandomAffine(0, scale=(2, 1)), ValueError, r"scale=\(2, 1\) is reversed"),
    (lambda: T.RandomAffine(0, scale=1.0), TypeError, r"scale=1.0"),
    (lambda: T.RandomAffine(0, scale=(1, NAN)), ValueError, r"scale\[1\]=nan"),
    (lambda: T.RandomAffine(0, shear=-5), ValueError, r"shear=-5"),
    (lambda: T.RandomAffine(0, shear=(5, -5)), ValueError, r"shear=\(5, -5\) is reversed"),
    (lambda: T.RandomAffine(0, shear=(1, 2, 3)), ValueError, r"shear=\(1, 2, 3\) has 3 entries"),
    (lambda: T.RandomAffine(0, shear=(1, 2, 4, 3)), ValueError, r"shear\[2:4\]=\(4, 3\) is reversed"),
    (lambda: T.RandomAffine(0, shear=(0, 90)), ValueError, r"other than 90 degrees"),
    (lambda: T.RandomAffine(0, shear="x"), TypeError, r"shear='x'"),
    (lambda: T.RandomAffine(0, interpolation="bicubic"), ValueError, r"interpolation='bicubic'; accepted is 'nearest'"),
    (lambda: T.RandomAffine(0, interpolation=2), ValueError, r"interpolation=2"),
    (lambda: T.RandomAffine(0, center=(1,)), ValueError, r"center=\(1,\) has 1 entries"),
    (lambda: T.RandomAffine(0, center=1), TypeError, r"center=1"),
    (lambda: T.RandomAffine(0, center=(NAN, 0)), ValueError, r"center\[0\]=nan"),
    (lambda: T.RandomAffine(0, num_maps=0), ValueError, r"num_maps=0; accepted is an integer >= 1"),
    (lambda: T.RandomAffine(0, num_maps=2.5), TypeError, r"num_maps=2.5"),
    (lambda: T.RandomAffine(0, fill=1), TypeError, r"fill"),
    (lambda: T.RandomRotation(-90), ValueError, r"degrees=-90"),
    (lambda: T.RandomRotation((NAN, 1)), ValueError, r"degrees\[0\]=nan"),
    (lambda: T.RandomRotation(90, expand=True), ValueError, r"expand=True; accepted is False"),
    (lambda: T.RandomRotation(90, "lanczos"), ValueError, r"interpolation='lanczos'"),
    (lambda: T.RandomRotation(90, num_maps=True), TypeError, r"num_maps=True"),
    (lambda: T.RandomResizedCrop((0, 1)), ValueError, r"scale\[0\]=0"),
    (lambda: T.RandomResizedCrop((1, 0.5)), ValueError, r"scale=\(1, 0.5\) is reversed"),
    (lambda: T.RandomResizedCrop(3), TypeError, r"scale=3"),
    (lambda: T.RandomResizedCrop((0.5, INF)), ValueError, r"scale\[1\]=inf"),
    (lambda: T.RandomResizedCrop(ratio=(0, 1)), ValueError, r"ratio\[0\]=0"),
    (lambda: T.RandomResizedCrop(ratio=(-1, 1)), ValueError, r"ratio\[0\]=-1"),
    (lambda: T.RandomResizedCrop(ratio=(2, 1)), ValueError, r"ratio=\(2, 1\) is reversed"),
    (lambda: T.RandomResizedCrop(interpolation="area"), ValueError, r"interpolation='area'"),
    (lambda: T.RandomHorizontalFlip(1.5), ValueError, r"p=1.5; accepted is a number in \[0, 1\]"),
    (lambda: T.RandomHorizontalFlip(NAN), ValueError, r"p=nan"),
    (lambda: T.RandomVerticalFlip(-0.1), ValueError, r"p=-0.1"),
    (lambda: T.RandomVerticalFlip("half"), TypeError, r"p='half'"),
    (lambda: T.RandomChoice([]), ValueError, r"transforms=\[\] is empty"),
    (lambda: T.RandomChoice(FLIP), TypeError, r"transforms=RandomHorizontalFlip\(\); accepted by RandomChoice"),
    (lambda: T.RandomChoice([FLIP, 3]), TypeError, r"transforms\[1\]=3.*FromCallable"),
    (lambda: T.RandomChoice([FLIP, DROP]), ValueError, r"transforms\[1\]=DropConnect\(p=0.1\) has noise"),
    (lambda: T.RandomChoice([T.Compose([FLIP, DROP])]), ValueError, r"transforms\[0\]=Compose.* has noise"),
    (lambda: T.RandomChoice([FLIP, FLIP], p=[1.0]), ValueError, r"p=\[1.0\] has 1 entries; accepted is 2 numbers"),
    (lambda: T.RandomChoice([FLIP, FLIP], p=[0.5, 0.6]), ValueError, r"p=\[0.5, 0.6\] sums to 1.1"),
    (lambda: T.RandomChoice([FLIP, FLIP], p=[1.5, -0.5]), ValueError, r"p\[0\]=1.5"),
    (lambda: T.RandomChoice([FLIP, FLIP], p=0.5), TypeError, r"p=0.5"),
    (lambda: T.RandomApply([]), ValueError, r"transforms=\[\] is empty"),
    (lambda: T.RandomApply(FLIP, p=2), ValueError, r"p=2"),
    (lambda: T.RandomApply(torch.relu), TypeError, r"transforms=.*accepted by RandomApply"),
    (lambda: T.RandomApply(DROP), ValueError, r"transforms\[0\]=DropConnect\(p=0.1\) has noise"),
    (lambda: T.Compose([]), ValueError, r"transforms=\[\] is empty"),
    (lambda: T.Compose([DROP, FLIP]), ValueError, r"transforms\[0\]=DropConnect.* has noise and RandomHorizontalFlip"),
    (lambda: T.Compose([FLIP, DROP, DROP]), ValueError, r"at most one noise, last"),
    (lambda: T.Compose([T.Compose([FLIP, DROP]), FLIP]), ValueError, r"at most one noise, last"),
    (lambda: T.Compose([torch.relu]), TypeError, r"wrap any other callable in FromCallable"),
    (lambda: T.TapDensity([]), ValueError, r"density=\[\]"),
    (lambda: T.TapDensity([[1, 2], [3]]), ValueError, r"density=.*rows of one length"),
    (lambda: T.TapDensity([1, 2]), TypeError, r"density=\[1, 2\]"),
    (lambda: T.TapDensity([[1, NAN]]), ValueError, r"density\[0\]\[1\]=nan"),
    (lambda: T.TapDensity([["a"]]), TypeError, r"density\[0\]\[0\]='a'"),
    (lambda: T.TapDensity(torch.ones(1, 3, 3)), TypeError, r"density\[0\]\[0\]=\[1.0, 1.0, 1.0\]"),
    (lambda: T.TapDensity(2.0), TypeError, r"density=2.0"),
    (lambda: T.FromCallable(3), TypeError, r"fn=3; accepted is a callable"),
    (lambda: T.FromCallable(torch.relu, 0), ValueError, r"num_maps=0"),
    (lambda: T.MultiplicativeNoise(-0.1), ValueError, r"std=-0.1"),
    (lambda: T.MultiplicativeNoise(INF), ValueError, r"std=inf"),
    (lambda: T.MultiplicativeNoise("a"), TypeError, r"std='a'"),
    (lambda: T.DropConnect(1.0), ValueError, r"p=1.0; accepted is a probability 0 <= p < 1"),
    (lambda: T.DropConnect(-0.5), ValueError, r"p=-0.5"),
    (lambda: T.DropConnect(NAN), ValueError, r"p=nan"),
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
    [FLIP.tap_table, T.Identity().tap_table, FLIP.plot, TF.hflip, lambda size: TF.rotate(size, 10)],
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
        T.TapDensity([[1, 2, 3]]).tap_table(3)


def test_crop_that_rounds_to_nothing():
    with pytest.raises(ValueError, match=r"ratio=\(0.1, 0.3\).*rounds to nothing"):
        T.RandomResizedCrop(ratio=(0.1, 0.3)).tap_table((1, 7))
