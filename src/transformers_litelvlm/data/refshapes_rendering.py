"""Drawing of RefShapes scenes: objects, textures, backgrounds and the exact region that every object occupies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


SCENE_SIZE = 144

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES = ("plain", "striped", "dotted")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 150, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 220, 50),
    "purple": (140, 50, 170),
    "orange": (250, 140, 25),
    "cyan": (60, 210, 225),
    "pink": (250, 140, 195),
}

# Radii in pixels of a 144 pixel scene. The gap between the two classes keeps the words "small" and "large" beyond
# dispute: what lies between is never called either.
SMALLEST_RADIUS = 8.5
SMALL_RADIUS = 11.0
LARGE_RADIUS = 15.0
LARGEST_RADIUS = 18.5


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene."""

    object_id: int  # its number in the scene, from 0
    shape: str  # one of `SHAPES`
    colour: str  # a key of `COLOURS`
    texture: str  # one of `TEXTURES`
    radius: float  # of the enclosing circle, in pixels
    x: float  # column and row of the centre, in pixels
    y: float
    angle: float  # in radians

    @property
    def size(self) -> str:
        """`"small"`, `"large"`, or `"medium"`, a class that no sentence mentions."""
        if self.radius <= SMALL_RADIUS:
            return "small"
        return "large" if self.radius >= LARGE_RADIUS else "medium"


def shape_region(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points `u`, `v` belong to a shape; in units of the radius, `v` grows downwards."""
    if shape == "circle":
        return u * u + v * v <= 0.9
    if shape == "ring":
        squared = u * u + v * v
        return (squared <= 1.0) & (squared >= 0.3)
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.78
    if shape == "cross":
        near, far = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
        return (near <= 0.31) & (far <= 0.95)
    if shape == "triangle":
        return (v <= 0.62) & (np.abs(u) <= (v + 1.0) * 0.6)
    # A five-pointed star: the radius swings linearly with the angle between its tips and its notches.
    sector = np.abs(((np.arctan2(u, -v) / (2 * np.pi) * 5) + 0.5) % 1.0 - 0.5) * 2
    return np.hypot(u, v) <= 1.0 - 0.52 * sector


def texture_ink(texture: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """At which points `u`, `v`, in units of the radius, the dark second tone of a texture is drawn. Its period is
    fixed in pixels, whatever the size of the object."""
    if texture == "plain":
        return np.zeros(u.shape, dtype=bool)
    if texture == "striped":
        return ((u + v) * radius / 7.0) % 1.0 < 0.45
    column, row = (u * radius / 6.0) % 1.0 - 0.5, (v * radius / 6.0) % 1.0 - 0.5
    return column * column + row * row < 0.11


def draw_background(rng: np.random.Generator) -> np.ndarray:
    """A grey gradient with noise and some clutter (short bars and specks), never in one of the object colours:
    `(SCENE_SIZE, SCENE_SIZE, 3)` floats in 0..255."""
    ramp = np.linspace(-1.0, 1.0, SCENE_SIZE, dtype=np.float32)
    level, slope_x, slope_y, strength = rng.uniform((60, -25, -25, 2), (190, 25, 25, 12))
    grey = level + slope_x * ramp[None, :] + slope_y * ramp[:, None]
    grey = grey + strength * rng.standard_normal((SCENE_SIZE, SCENE_SIZE), dtype=np.float32)
    for _ in range(int(rng.integers(0, 13))):
        row, column, height, width = rng.integers((0, 0, 1, 1), (SCENE_SIZE, SCENE_SIZE, 4, 10))
        if rng.random() < 0.5:
            height, width = width, height
        grey[row : row + height, column : column + width] += rng.uniform(-45, 45)
    tint = rng.uniform(-8, 8, size=3).astype(np.float32)
    return grey[:, :, None] + tint


def draw_object(canvas: np.ndarray, id_map: np.ndarray, item: SceneObject, rng: np.random.Generator) -> None:
    """Paint one object over what is there, in the picture and in the map of object numbers alike, so that the masks
    of occluded objects are exact. Both are as in [`render_scene`], and are changed in place."""
    reach = int(np.ceil(item.radius)) + 1
    top, left = max(int(item.y) - reach, 0), max(int(item.x) - reach, 0)
    bottom, right = min(int(item.y) + reach + 1, SCENE_SIZE), min(int(item.x) + reach + 1, SCENE_SIZE)
    dx = (np.arange(left, right, dtype=np.float32) - item.x)[None, :] / item.radius
    dy = (np.arange(top, bottom, dtype=np.float32) - item.y)[:, None] / item.radius
    cosine, sine = np.cos(item.angle), np.sin(item.angle)
    u, v = cosine * dx + sine * dy, cosine * dy - sine * dx

    region = shape_region(item.shape, u, v)
    ink = texture_ink(item.texture, u, v, item.radius)
    base = np.asarray(COLOURS[item.colour], dtype=np.float32) + rng.uniform(-12, 12, size=3).astype(np.float32)
    paint = np.where(ink[:, :, None], 0.35 * base, base)
    canvas[top:bottom, left:right][region] = paint[region]
    id_map[top:bottom, left:right][region] = item.object_id + 1


def render_scene(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene, later objects over earlier ones: the picture, `(SCENE_SIZE, SCENE_SIZE, 3)` uint8, and the map of
    visible regions, `(SCENE_SIZE, SCENE_SIZE)` uint8, which holds object number plus one and 0 for the background."""
    canvas = draw_background(rng)
    id_map = np.zeros((SCENE_SIZE, SCENE_SIZE), dtype=np.uint8)
    for item in objects:
        draw_object(canvas, id_map, item, rng)
    return np.clip(canvas, 0, 255).astype(np.uint8), id_map
