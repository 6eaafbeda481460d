"""Neurons as a brightfield microscope shows them, drawn for the demo and the tests: stained dark, on a bright field.

A neuron is grown as a tree, the same that its SWC tells. What stains it is laid into a few thin layers by depth; a
slice is all layers, each blurred by its distance from the focus, and the light that passes through them.

Pure functions: the same seed makes the same neuron and, on one machine, the same bytes. Lengths are in pixels, depths
in slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]
Slice = npt.NDArray[np.uint8]

SOMA, AXON, DENDRITE, APICAL_DENDRITE = 1, 2, 3, 4
"""Types of a node, as SWC numbers them."""

LAYERS = 12
"""Depths at which stain lies; a finer division is not seen and takes longer to blur."""

DRAWN_HEIGHT = 800
"""Height of the pictures for which the lengths here are meant; other heights scale them."""

_STEP = 5.0
_THINNEST = 0.75
"""Radius of a process at its end."""

_SHARPEST = 0.7
"""Blur (standard deviation, pixels) in focus."""

_DEFOCUS = 28.0
"""Blur a whole stack away from the focus."""

_CUT_OFF = 0.6
"""Frequency (cycles per standard deviation of the blur) above which a thousandth is left."""

_DENSITY = 0.22
"""Optical density of a pixel's depth of stain."""

_LIGHT = 212.0
_GRAIN = 2.2


class Node(NamedTuple):
    """A point of a neuron; `parent` is the place of another in the list before it, or -1."""

    kind: int
    x: float
    y: float
    z: float
    radius: float
    parent: int


class _Tip(NamedTuple):
    """The end of a process that still grows: from which node, where to, and for how long."""

    node: int
    heading: float
    climb: float
    radius: float
    length: float
    branchings: int


def grow(seed: int, width: int, height: int, slices: int) -> list[Node]:
    """A neuron that fits into a stack of that shape: a soma, dendrites, and a thin axon."""
    rng = np.random.default_rng(seed)
    shape = (width, height, slices)
    x, y = width * rng.uniform(0.44, 0.56), height * rng.uniform(0.52, 0.62)
    z, unit = (slices - 1) * rng.uniform(0.45, 0.55), height / DRAWN_HEIGHT
    nodes = [Node(SOMA, x, y, z, 15 * unit, -1)]
    up = -math.pi / 2
    _extend(rng, nodes, APICAL_DENDRITE, _Tip(0, up, 0, 6.0, 520, 4), shape, branching=0.035)
    basal = 6
    for number in range(1, basal + 1):
        heading = up + math.tau * (number + rng.uniform(-0.25, 0.25)) / (basal + 1)
        tip = _Tip(0, heading, rng.normal(0, 0.9), rng.uniform(3.2, 4.6), rng.uniform(230, 380), 4)
        _extend(rng, nodes, DENDRITE, tip, shape, branching=0.036)
    _extend(rng, nodes, AXON, _Tip(0, 0.3 - up, 0.2, 1.5, 900, 3), shape, branching=0.014)
    return nodes


def _extend(
    rng: np.random.Generator,
    nodes: list[Node],
    kind: int,
    root: _Tip,
    shape: tuple[int, int, int],
    *,
    branching: float,
) -> None:
    """Add a process with its branches to `nodes`; `branching` is the chance of a branch in each step."""
    width, height, slices = shape
    unit = height / DRAWN_HEIGHT
    soma = nodes[0]
    tips = [root]
    while tips:
        node, heading, climb, radius, length, branchings = tips.pop()
        taper = min(1.0, (_THINNEST / radius) ** (_STEP / length))
        while length > 0:
            x, y, z = nodes[node][1:4]
            away = math.atan2(y - soma.y, x - soma.x)
            heading += rng.normal(0, 0.11) + 0.025 * math.sin(away - heading) * (node > 0)
            climb = 0.97 * climb + rng.normal(0, 0.1)
            x += _STEP * unit * math.cos(heading)
            y += _STEP * unit * math.sin(heading)
            z += _STEP * climb * slices / DRAWN_HEIGHT
            if not (0 <= x < width and 0 <= y < height):
                break
            if not 0 < z < slices - 1:
                z, climb = min(max(z, 0.0), slices - 1.0), -climb
            varicosity = 1.9 if kind == AXON and rng.random() < 0.06 else rng.normal(1, 0.06)
            nodes.append(Node(kind, x, y, z, radius * varicosity * unit, node))
            node = len(nodes) - 1
            radius *= taper
            length -= _STEP
            if branchings > 0 and rng.random() < branching:
                branchings -= 1
                side = rng.choice((-1, 1)) * rng.uniform(0.45, 0.9)
                rise = climb + rng.normal(0, 0.4)
                shorter = length * rng.uniform(0.55, 0.95)
                tips.append(_Tip(node, heading + side, rise, radius * 0.8, shorter, branchings))
                heading -= side * 0.35
                radius *= 0.92


def swc(nodes: list[Node], first_slice: int) -> str:
    """The neuron as an SWC file; its z counts slices from 0, whatever number the first one's name has."""
    lines = [
        "# A made-up neuron, drawn by bffs for its demo",
        "# x and y are pixels from the centre of the top left pixel, z counts slices from the first one",
        f"# (its number is {first_slice}), the radius is in pixels",
        "# id type x y z radius parent",
    ]
    for number, node in enumerate(nodes, 1):
        parent = node.parent + 1 if node.parent >= 0 else -1
        place = f"{node.x:.2f} {node.y:.2f} {node.z:.2f} {node.radius:.2f}"
        lines.append(f"{number} {node.kind} {place} {parent}")
    return "\n".join(lines) + "\n"


def stack(nodes: list[Node], seed: int, width: int, height: int, slices: int) -> Iterator[Slice]:
    """The slices (height, width) of the neuron, in order."""
    rng = np.random.default_rng(seed)
    unit = height / DRAWN_HEIGHT
    layers = _stain(nodes, width, height, slices)
    _litter(rng, layers, unit)
    spectra = np.fft.rfft2(layers)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    per_variance = (-2 * (math.pi * frequency) ** 2).astype(np.float32)
    field = _field(rng, width, height)
    for number in range(slices):
        spectrum = np.zeros_like(spectra[0])
        for layer, of_layer in enumerate(spectra):
            away = layer / (LAYERS - 1) - number / max(1, slices - 1)
            sigma = math.hypot(_SHARPEST, _DEFOCUS * away * unit)
            kept = np.s_[:, : int(_CUT_OFF / sigma * width) + 1]
            spectrum[kept] += of_layer[kept] * np.exp(per_variance[kept] * np.float32(sigma**2))
        light = field * np.exp(-np.fft.irfft2(spectrum, (height, width)))
        light += _GRAIN * rng.standard_normal((height, width), np.float32)
        yield np.clip(light, 0, 255).astype(np.uint8)


def _stain(nodes: list[Node], width: int, height: int, slices: int) -> Image:
    """Optical density (layer, y, x) of the neuron."""
    layers = np.zeros((LAYERS, height, width), np.float32)
    for node in nodes:
        start = nodes[node.parent] if node.parent >= 0 else node
        if start.kind == SOMA and node.kind != SOMA:  # a process leaves the soma tapering
            start = start._replace(radius=min(start.radius, 2.5 * node.radius))
        _draw(layers, (LAYERS - 1) * node.z / max(1, slices - 1), start, node, _DENSITY)
    return layers


def _litter(rng: np.random.Generator, layers: Image, unit: float) -> None:
    """Add what else takes the stain: faint cells and specks, at any depth."""
    _, height, width = layers.shape
    for _ in range(160):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), unit * rng.gamma(1.6, 1.1)
        start = Node(SOMA, x, y, 0, radius, -1)
        end = Node(
            SOMA,
            x + radius * rng.normal(0, 1.2),
            y + radius * rng.normal(0, 1.2),
            0,
            radius * 0.7,
            -1,
        )
        _draw(layers, rng.uniform(0, LAYERS - 1), start, end, _DENSITY * rng.uniform(0.05, 0.3))


def _draw(layers: Image, depth: float, start: Node, end: Node, density: float) -> None:
    """Draw a cone with round ends, which absorbs as deep as it is thick, shared by the two layers at `depth`."""
    _, height, width = layers.shape
    reach = max(start.radius, end.radius) + 1.5
    left, right = sorted((start.x, end.x))
    top, bottom = sorted((start.y, end.y))
    columns = slice(max(0, int(left - reach)), max(0, min(width, int(right + reach) + 1)))
    rows = slice(max(0, int(top - reach)), max(0, min(height, int(bottom + reach) + 1)))
    x = np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(start.x)
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(start.y)
    dx, dy = end.x - start.x, end.y - start.y
    along = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
    radius = start.radius + along * (end.radius - start.radius)
    distance = np.hypot(x - along * dx, y - along * dy)
    inside = np.clip(radius + 0.5 - distance, 0, 1)
    thick = 2 * np.sqrt(np.maximum(radius**2 - distance**2, 0.3))
    stain = inside * density * (1 + np.minimum(thick, 12))
    nearer = min(int(depth), len(layers) - 2)
    for layer, share in ((nearer, nearer + 1 - depth), (nearer + 1, depth - nearer)):
        window = layers[layer, rows, columns]
        np.maximum(window, share * stain, out=window)


def _field(rng: np.random.Generator, width: int, height: int) -> Image:
    """The light without a neuron: brightest near the middle, and slightly cloudy."""
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    lamp = 1 - 0.10 * ((x - 0.2) ** 2 + (y + 0.1) ** 2) + 0.03 * x - 0.02 * y
    clouds = np.zeros_like(lamp)
    for _ in range(24):
        across, down = rng.normal(0, 2.2, 2)
        clouds += np.sin(across * x * math.pi + down * y * math.pi + rng.uniform(0, math.tau))
    return (_LIGHT * lamp * (1 + 0.005 * clouds)).astype(np.float32)
