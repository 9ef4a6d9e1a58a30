"""Architectures as SVG: a genotype or UNet as its U, one cell, alphas as a heat-map, a search as a film."""

from searchseg.drawing.alpha import draw_alpha
from searchseg.drawing.cell import CellLayout, RoutedEdge, describe_cell, draw_cell, layout_cell
from searchseg.drawing.film import draw_film
from searchseg.drawing.network import draw, draw_unet
from searchseg.drawing.notation import CELL_INPUTS, OPERATION_COLORS
from searchseg.drawing.parts import draw_parts

__all__ = [
    "CELL_INPUTS",
    "OPERATION_COLORS",
    "CellLayout",
    "RoutedEdge",
    "describe_cell",
    "draw",
    "draw_alpha",
    "draw_cell",
    "draw_film",
    "draw_parts",
    "draw_unet",
    "layout_cell",
]
