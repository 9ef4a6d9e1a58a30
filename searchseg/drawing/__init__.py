"""Architectures as SVG text: a genotype or UNet as its U, one cell as its graph, alphas as a heat-map."""

from searchseg.drawing.alpha import draw_alpha
from searchseg.drawing.cell import CellLayout, RoutedEdge, describe_cell, draw_cell, layout_cell
from searchseg.drawing.network import draw, draw_unet
from searchseg.drawing.notation import CELL_INPUTS, OPERATION_COLORS

__all__ = [
    "CELL_INPUTS",
    "OPERATION_COLORS",
    "CellLayout",
    "RoutedEdge",
    "describe_cell",
    "draw",
    "draw_alpha",
    "draw_cell",
    "draw_unet",
    "layout_cell",
]
