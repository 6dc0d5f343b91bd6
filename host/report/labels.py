"""Where to put the names of points so that none covers another, a point, or the frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Directions tried for each label, nearest reading order first: right, left, above, below, corners.
_DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
_RINGS = (0, 12, 26, 42, 60, 82, 108, 140)


Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Placed:
    """Centre of a label in pixels, y downwards; `leader` when it stands away from its point."""

    x: float
    y: float
    leader: bool


def text_width(text: str, size_px: float) -> float:
    """Width of a sans-serif text in pixels, taken a little too wide."""
    return sum(0.4 if c in " ,.:;|il[]()'" else 0.66 for c in text) * size_px + 4


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bounds: tuple[float, float],
    *,
    marker: float = 8.0,
    lines: Sequence[Box] = (),
) -> list[Placed]:
    """Greedy placement, most crowded points first.

    Args:
        points: (x, y) of each marker in pixels, origin top left, y downwards.
        sizes: (width, height) of each label in pixels.
        bounds: (width, height) of the drawing area; labels stay inside.
        marker: radius around each point that no label may cover.
        lines: thin boxes, such as whiskers, that a label had better not cross.

    The line that leads from a label to its point crosses no other label and no other point where
    that can be had.

    Only the first len(sizes) points get a label; the others are just in the way.
    Returns one Placed per label. Where no free place exists the least covered one is taken.
    """
    order = sorted(range(len(sizes)), key=lambda i: -_crowd(points, i))
    markers: list[Box] = [(x - marker, y - marker, x + marker, y + marker) for x, y in points]
    taken = list(markers)
    placed: dict[int, Placed] = {}
    leaders: list[tuple[float, float, float, float]] = []
    labels: list[Box] = []
    for index in order:
        x, y = points[index]
        width, height = sizes[index]
        best: tuple[float, Placed, Box] | None = None
        for ring in _RINGS:
            for dx, dy in _DIRECTIONS:
                reach = marker + 2 + ring
                cx = x + dx * (reach + width / 2) if dx else x
                cy = y + dy * (reach + height / 2) if dy else y
                if dx and dy:  # corners sit closer: the box's corner faces the point
                    cx, cy = x + dx * (reach * 0.7 + width / 2), y + dy * (reach * 0.7 + height / 2)
                cx = min(max(cx, width / 2), max(bounds[0] - width / 2, width / 2))
                cy = min(max(cy, height / 2), max(bounds[1] - height / 2, height / 2))
                box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
                cost = sum(_covered(box, other) for other in taken)
                # Crossing a line is worth a step away, but not a walk across the plot.
                cost += sum(0.3 for line in lines if _covered(box, line)) + ring * 0.02
                cost += sum(2.0 for leader in leaders if _crosses(leader, box))
                if ring:
                    leader = (x, y, cx, cy)
                    cost += sum(2.0 for label in labels if _crosses(leader, label))
                    others = (m for k, m in enumerate(markers) if k != index)
                    cost += sum(1.0 for other in others if _crosses(leader, other))
                if best is None or cost < best[0]:
                    best = (cost, Placed(cx, cy, ring > 0), box)
            if best is not None and best[0] < 0.3:
                break
        assert best is not None
        placed[index] = best[1]
        taken.append(best[2])
        labels.append(best[2])
        if best[1].leader:
            leaders.append((x, y, best[1].x, best[1].y))
    return [placed[i] for i in range(len(sizes))]


def _crosses(line: tuple[float, float, float, float], box: Box) -> bool:
    """Whether a straight line from (x0, y0) to (x1, y1) comes into the box."""
    x0, y0, x1, y1 = line
    steps = 24
    at = [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps + 1)]
    return any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in at)


def _crowd(points: Sequence[tuple[float, float]], index: int) -> float:
    x, y = points[index]
    return sum(1 / (20 + math.hypot(x - a, y - b)) for i, (a, b) in enumerate(points) if i != index)


def _covered(a: Box, b: Box) -> float:
    """Area two boxes share, in square pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0
