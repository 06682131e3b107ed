"""Layers whose weight is redrawn at every forward, and what turns a model into one made of them."""

from watnn import transforms
from watnn.conversion import convert, revert
from watnn.distributed import sync_draws
from watnn.export import export, shadow_weight
from watnn.flops import flops
from watnn.layers import WATConv1d, WATConv2d, WATLinear
from watnn.modes import aom, auto, dom
from watnn.report import export_report
from watnn.schedule import StrengthScheduler
from watnn.summary import summary
from watnn.uncertainty import ensemble

__all__ = [
    "StrengthScheduler",
    "WATConv1d",
    "WATConv2d",
    "WATLinear",
    "aom",
    "auto",
    "convert",
    "dom",
    "ensemble",
    "export",
    "export_report",
    "flops",
    "revert",
    "shadow_weight",
    "summary",
    "sync_draws",
    "transforms",
]
