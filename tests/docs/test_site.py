"""The site builds without a warning, says everything that is public, and needs nothing from elsewhere."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import watnn
from watnn.transforms import Transform

from wat_kernels import dispatch

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    for package in ("material", "mkdocstrings", "matplotlib"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


@pytest.mark.parametrize(
    ("module", "page"),
    [
        ("watnn", "watnn"),
        ("watnn.transforms", "transforms"),
        ("watnn.transforms.functional", "transforms"),
        ("wat_kernels", "wat_kernels"),
    ],
)
def test_every_public_name_is_in_the_reference(site, module, page):
    html = (site / "reference" / f"{page}.html").read_text()
    anchors = set(re.findall(r'<h\d id="([^"]+)" class="doc', html))
    public = importlib.import_module(module)
    names = getattr(public, "__all__", ("affine", "rotate", "resized_crop", "hflip", "vflip"))
    for name in names:
        value = getattr(public, name)
        places = {f"{module}.{name}"}
        if not inspect.ismodule(value):
            places.add(f"{value.__module__}.{value.__qualname__}")
        assert places & anchors, name


def test_arguments_are_lists(site):
    html = (site / "reference/wat_kernels.html").read_text()
    assert "<li><code>stride, padding, dilation, groups</code>: as in torch.nn.functional.conv2d</li>" in html


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"""(?:src|srcset)=["']?(https?:[^"' >]+)|<link[^>]+href=["']?(https?:[^"' >]+)""", page.read_text()
        )
        assert not loaded, page


def test_every_transform_has_its_place_in_the_gallery(site):
    page = (DOCS / "transforms.md").read_text()
    for name in watnn.transforms.__all__:
        value = getattr(watnn.transforms, name)
        if inspect.isclass(value) and (not issubclass(value, Transform) or value.__module__.endswith(".base")):
            continue
        if inspect.ismodule(value):
            continue
        assert f"### {name}\n" in page, name
        (row,) = re.findall(rf"^\| `{name}` \|([^|]*)\|", page, re.MULTILINE)
        written = [argument.split("=")[0] for argument in re.findall(r"`([^`]+)`", row)]
        assert written == [p for p in inspect.signature(value).parameters if not p.startswith("_")], name
        assert (site / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_support_page_names_every_backend_and_variable():
    from watnn.info import _ENVIRONMENT

    page = (DOCS / "backends.md").read_text()
    assert all(f"| `{name}` |" in page for name in dispatch.NAMES)
    assert all(f"| `{name}" in page for name in _ENVIRONMENT)


def test_files_that_pages_name_exist():
    for page in DOCS.rglob("*.md"):
        for path in re.findall(
            r"`((?:wat_kernels|python|csrc|tests|examples|benchmarks|build_tools)/[^`*<>]*)`", page.read_text()
        ):
            assert (ROOT / path).exists(), (page.name, path)
