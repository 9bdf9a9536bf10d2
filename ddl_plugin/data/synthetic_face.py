"""Procedurally drawn faces: a parametric 3-D head, seen by a camera, aligned as InsightFace aligns faces.

Head coordinates are centimetres: x to the image's right, y up, z towards the camera; the eyes are at y = 0. A head
is a cloud of points with normals and colours, dense enough that painting them from far to near (two by
two pixels each, at twice the image's size) leaves a closed picture. Identity fixes shape and colours; everything
that differs between two pictures of one person is in `Conditions`. NumPy and OpenCV only.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 112  # pixels of an aligned face
_SCALE = 2  # supersampling
_COLUMNS, _ROWS, _DOME_ROWS = 290, 200, 78  # grid of the head; the dome is above y = 3
_HAIR_COLUMNS, _HAIR_ROWS, _HAIR_DOME_ROWS = 300, 66, 64  # of short hair; rows below and in the dome
#: ArcFace's positions of eyes, nose tip and mouth corners (image left first), pixels of a 112x112 image.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


@dataclass(frozen=True)
class Conditions:
    """What one picture of a person is taken under.

    Angles in degrees. `yaw` > 0: the nose points to the image's left, as FSA-Net counts; `pitch` > 0: up; `roll` > 0:
    clockwise in the image before alignment, which takes it out again but leaves the light where it was.
    """

    yaw: float
    pitch: float
    roll: float
    resolution: int  # pixels of the face's side before it is enlarged to 112
    smile: float  # -0.4..1
    mouth: float  # opening, centimetres
    eyes: float  # 0 closed .. 1 open
    brows: float  # raised by, centimetres
    gaze: tuple[float, float]
    light: tuple[float, float, float]  # towards the key light, unit vector
    key: tuple[float, float, float]  # colour and strength of the key light
    ambient: tuple[float, float, float]
    distance: float  # camera to head, centimetres
    seed: int  # of background, noise and errors of the alignment
    blur: float
    noise: float
    jpeg: int


def draw_conditions(rng: np.random.Generator, yaw: float) -> Conditions:
    """Random conditions for a picture at `yaw` degrees; everything else is independent of it."""
    azimuth, elevation = np.radians(rng.uniform(-75, 75)), np.radians(rng.uniform(-5, 60))
    light = (np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation))
    exposure, ratio = np.exp(rng.normal(0.0, 0.13)), rng.uniform(0.25, 0.75)
    warmth = rng.normal(0.0, 0.09)
    temperature = np.array([1.0 + warmth, 1.0 + rng.normal(0, 0.015), 1.0 - 1.2 * warmth])
    cast = np.clip(1.0 + rng.normal(0.0, 0.05, 3), 0.85, 1.15)
    smile = float(np.clip(rng.normal(0.25, 0.4), -0.35, 1.0))
    return Conditions(
        yaw=float(yaw),
        pitch=float(np.clip(rng.normal(0, 5), -14, 14)),
        roll=float(np.clip(rng.normal(0, 5), -20, 20)),
        resolution=int(rng.integers(24, SIDE)) if rng.random() < 0.25 else SIDE,
        smile=smile,
        mouth=float(max(0.0, rng.uniform(-0.9, 1.0))) * (1.0 if rng.random() < 0.6 else 0.35),
        eyes=float(rng.uniform(0.0, 0.3)) if rng.random() < 0.04 else float(rng.uniform(0.7, 1.05)),
        brows=float(np.clip(rng.normal(0.0, 0.15), -0.3, 0.5)),
        gaze=(float(rng.normal(0, 0.14)), float(rng.normal(0, 0.05))),
        light=tuple(float(v) for v in light),
        key=tuple(float(v) for v in exposure * (1.0 - ratio) * 1.15 * temperature),
        ambient=tuple(float(v) for v in exposure * (0.2 + 0.72 * ratio) * cast),
        distance=float(rng.uniform(60, 160)),
        seed=int(rng.integers(2**31)),
        blur=float(max(0.0, rng.uniform(-0.4, 0.7))),
        noise=float(rng.uniform(0.5, 5.0)),
        jpeg=int(rng.integers(72, 96)),
    )


# ------------------------------------------------------------------------------------------ identity


def _traits(rng: np.random.Generator) -> dict:
    """The numbers that make a person: shape in centimetres, colours as RGB 0..1."""
    sex = float(np.clip(rng.normal(0.75 if rng.random() < 0.5 else -0.75, 0.35), -1.2, 1.2))  # > 0: masculine
    age = float(rng.uniform(0.0, 1.0))
    tone = float(rng.beta(1.4, 2.0))  # 0 pale .. 1 dark

    def around(mean: float, spread: float, by_sex: float = 0.0) -> float:
        return mean + by_sex * sex + spread * float(np.clip(rng.normal(), -2.2, 2.2))

    pale, mid, dark = np.array([0.93, 0.76, 0.66]), np.array([0.78, 0.56, 0.42]), np.array([0.42, 0.27, 0.19])
    skin = pale + (mid - pale) * min(1.0, 2 * tone) + (dark - mid) * max(0.0, 2 * tone - 1)
    skin = skin * (1 + rng.normal(0, 0.025, 3)) * (1 + rng.normal(0, 0.03))
    palette = np.array(
        [[0.07, 0.055, 0.05], [0.17, 0.10, 0.065], [0.30, 0.19, 0.11], [0.46, 0.25, 0.12], [0.68, 0.52, 0.31]]
    )
    odds = np.array([1.0, 1.0, 0.8, 0.25, 0.5]) if tone < 0.4 else np.array([1.6, 0.7, 0.12, 0.03, 0.02])
    hair = palette[rng.choice(5, p=odds / odds.sum())] * np.exp(rng.normal(0, 0.16))
    grey = float(np.clip((age - 0.62) * 3 + rng.normal(0, 0.25), 0, 1)) if age > 0.6 else 0.0
    hair = hair * (1 - grey) + np.array([0.66, 0.65, 0.64]) * grey
    irises = np.array([[0.22, 0.12, 0.06], [0.34, 0.21, 0.10], [0.30, 0.34, 0.18], [0.32, 0.46, 0.58]])
    iris_odds = np.array([0.35, 0.25, 0.15, 0.25]) if tone < 0.4 else np.array([0.8, 0.18, 0.02, 0.0])
    lips = skin * np.array([0.9, 0.6, 0.6]) * (1 + rng.normal(0, 0.05))
    if sex < 0 and rng.random() < 0.5:  # lipstick
        lips = 0.45 * lips + 0.55 * np.array([0.72, 0.22, 0.27]) * np.exp(rng.normal(0, 0.15, 3))
    style = rng.choice(["short", "long", "bald", "fringe", "crop"],
                       p=[0.5, 0.02, 0.14, 0.14, 0.2] if sex > 0 else [0.14, 0.5, 0.0, 0.3, 0.06])  # fmt: skip
    beard = rng.choice(["none", "stubble", "beard", "moustache", "goatee"],
                       p=[0.42, 0.25, 0.15, 0.09, 0.09] if sex > 0.1 else [1, 0, 0, 0, 0])  # fmt: skip
    return {
        "sex": sex,
        "age": age,
        "skin": np.clip(skin, 0.12, 0.97).astype(np.float32),
        "hair": np.clip(hair, 0.03, 0.9).astype(np.float32),
        "iris": np.float32(irises[rng.choice(4, p=iris_odds)] * np.exp(rng.normal(0, 0.18))),
        "lips": np.clip(lips, 0.1, 0.95).astype(np.float32),
        "blush": float(rng.uniform(0.2, 1.0)),
        "style": str(style),
        "long": bool(style == "long" or (style == "fringe" and sex < 0 and rng.random() < 0.7)),
        "beard": str(beard),
        "top": around(11.0, 0.5),
        "width": around(7.25, 0.38, 0.1),
        "cheek": around(1.0, 0.03),
        "jaw": around(0.80, 0.055, 0.035),
        "chin": around(0.42, 0.07, 0.035),
        "length": around(11.8, 0.45, 0.25),
        "flat": around(2.35, 0.15),
        "depth": around(8.4, 0.25),
        "forehead": around(0.0, 0.35, -0.12),
        "eye_x": around(3.2, 0.19),
        "eye_w": around(1.62, 0.13),
        "eye_h": around(0.66, 0.1, -0.05),
        "eye_tilt": around(0.07, 0.07, -0.03),
        "eye_deep": around(0.6, 0.2, 0.08),
        "fold": around(0.36, 0.1),
        "iris_r": around(0.66, 0.03),
        "brow_y": around(2.0, 0.25, -0.2),
        "brow_t": around(0.36, 0.1, 0.1),
        "brow_arch": around(0.42, 0.22, -0.14),
        "brow_in": around(1.3, 0.22, -0.1),
        "brow_dark": float(rng.uniform(0.55, 0.95)),
        "ridge": around(0.42, 0.14, 0.18),
        "nose_l": around(4.0, 0.36, 0.12),
        "nose_h": around(2.0, 0.34, 0.1),
        "nose_w": around(1.32, 0.2, 0.08) + 0.25 * tone,
        "bridge": around(0.7, 0.12) + 0.1 * tone,
        "hump": around(0.05, 0.16, 0.06),
        "nose_up": around(0.0, 0.22, -0.12),
        "mouth_y": around(7.15, 0.28, 0.1),
        "mouth_w": around(2.6, 0.24, 0.1),
        "upper": around(0.5, 0.12, -0.07) + 0.15 * tone,
        "lower": around(0.68, 0.14, -0.07) + 0.15 * tone,
        "bow": around(0.28, 0.12),
        "chin_out": around(0.45, 0.3, 0.12),
        "cheekbone": around(0.45, 0.2, -0.03),
        "hollow": around(0.25, 0.25, 0.08),
        "ear": around(1.0, 0.1, 0.04),
        "ear_out": around(24.0, 9.0),
        "neck": around(5.3, 0.3, 0.45),
        "hairline": around(6.6, 0.5) + (0.5 * age if sex > 0 else -0.2),
        "recede": float(np.clip(rng.normal(0.5, 0.8), 0, 2)) if sex > 0 else 0.0,
        "parting": float(rng.uniform(-1, 1)),
        "volume": float(rng.uniform(0.5, 1.5)) * (0.45 if style == "crop" else 1.0),
        "curl": float(rng.uniform(0, 1)) ** 2 if tone < 0.6 else float(rng.uniform(0.4, 1.0)),
        "freckles": float(rng.uniform(0.5, 1)) if tone < 0.35 and rng.random() < 0.2 else 0.0,
        "glasses": bool(rng.random() < 0.16),
    }


#: Positions, normals and colours of the points of a part, (n, 3) each.
_Part = tuple[np.ndarray, np.ndarray, np.ndarray]


def _bump(x, y, cx, cy, sx, sy):
    return np.exp(-(((x - cx) / sx) ** 2) - ((y - cy) / sy) ** 2)


def _ramp(value, low, high):
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _curve(at, xs, ys, smooth):
    values = np.interp(at, xs, ys)
    kernel = np.hanning(2 * smooth + 3)[1:-1]
    return np.convolve(np.pad(values, smooth, mode="edge"), kernel / kernel.sum(), mode="valid")


def _noise(rng, shape, cells):
    """Smooth noise, mean 0, deviation 1, with about `cells` (rows, columns) blobs."""
    small = rng.normal(size=(max(2, int(cells[0])), max(2, int(cells[1])))).astype(np.float32)
    large = cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return (large - large.mean()) / (large.std() + 1e-6)


def _normals(points):
    """Unit normals of a grid of points (rows, columns, 3), outward for rows going down, columns to +x."""
    down, across = np.gradient(points, axis=0), np.gradient(points, axis=1)
    # Smoothed: facets of the grid must not show.
    normal = cv2.GaussianBlur(np.cross(down, across).astype(np.float32), (0, 0), 1.6)
    return normal / (np.linalg.norm(normal, axis=2, keepdims=True) + 1e-9)


class Head:
    """One person. `render` draws pictures of them.

    `Head(rng)` draws shape, colours, hair and spectacles from `rng` (about 25 ms, 4 MB); a picture takes about 5 ms.
    """

    def __init__(self, rng: np.random.Generator):
        self.traits = _traits(rng)
        grid = self._shape_head()
        albedo = self._paint_skin(rng)
        hair, self._kept = self._hair(rng)
        parts = {
            "face": [
                part.reshape(-1, 3)[self._kept]
                for part in (grid, _normals(grid), albedo * self._cavity[..., None])
            ],
            "neck": self._neck(),
            "hair": hair,
        }
        if not self.traits["long"]:
            parts["ears"] = self._ears()
        if self.traits["glasses"]:
            parts["glasses"] = self._glasses(rng)
        self._join(parts)
        self._find_places()

    # ---- shape

    def _shape_head(self) -> np.ndarray:
        """Positions of the grid, (rows, columns, 3) float32."""
        t = self.traits
        s = np.linspace(-1, 1, _COLUMNS)
        phi = np.pi * (0.74 * s + 0.26 * s**3)  # finer in front
        theta = np.radians(np.linspace(88, 0, _DOME_ROWS, endpoint=False))
        low = 3.0 - (3.0 + t["length"]) * np.linspace(0, 1, _ROWS - _DOME_ROWS)
        y = np.concatenate([3.0 + (t["top"] - 3.0) * np.sin(theta), low])
        shrink = np.concatenate([np.cos(theta) ** 0.85, np.ones(_ROWS - _DOME_ROWS)])
        chin = -t["length"]
        w, c = t["width"], t["cheek"]
        levels = np.array([chin, chin + 0.12, chin + 0.5, chin + 1.2, chin + 2.6, -6.6, -4.0, -1.2, 1.2, 3.0])
        wide = w * np.array([0.02, t["chin"] * 0.45, t["chin"] * 0.78, t["chin"], 0.5 * (t["chin"] + t["jaw"]),
                             t["jaw"], 0.5 * (t["jaw"] + c), c, 1.0, 1.0])  # fmt: skip
        deep = t["depth"] + np.array([-4.2, -1.6, -0.5, 0, 0, 0.35, 0.1, -0.25, 0.25, 0.25 + t["forehead"]])
        back = np.array([0.3, 0.5, 0.5, 0.8, 1.5, 4.0, 6.5, 8.2, 9.2, 9.6])
        a, f, b = (
            (_curve(y, levels, values, smooth) * shrink).astype(np.float32)
            for values, smooth in ((wide, 2), (deep, 3), (back, 5))
        )
        phi = phi.astype(np.float32)
        sine, cosine = np.sin(phi)[None], np.cos(phi)[None]
        x = a[:, None] * sine
        round_ = (1 - np.abs(sine) ** t["flat"]) ** (1 / t["flat"])
        z = np.where(cosine > 0, f[:, None] * round_, -b[:, None] * np.abs(cosine))
        yy = np.repeat(y.astype(np.float32)[:, None], _COLUMNS, axis=1)
        front = np.broadcast_to(_ramp(cosine, 0.05, 0.45), x.shape)
        relief = self._relief(x, yy) * front
        z = z + relief
        # The lower edge of the jaw climbs towards the ears.
        yy = yy + 0.42 * np.maximum(0, -4.5 - yy) * np.clip(1 - z / f[:, None].clip(4), 0, 1)
        self._u, self._v = x, yy.copy()  # where the features are painted
        self._phi, self._front = np.degrees(phi), front
        self._cross = (y, a, f, b)
        lift = cv2.GaussianBlur(relief, (0, 0), 9)
        fine = cv2.GaussianBlur(relief, (0, 0), 3)
        self._cavity = np.clip(1 + 0.2 * (relief - lift) + 0.4 * (relief - fine), 0.62, 1.1)
        return np.stack([x, yy, z], axis=2)

    def _relief(self, x, y):
        """Centimetres added to z by brow, eye sockets, nose, cheeks, lips and chin, at face-plane (x, y)."""
        t, ax = self.traits, np.abs(x)
        tip, my = -t["nose_l"], -t["mouth_y"]
        h = -t["eye_deep"] * _bump(ax, y, t["eye_x"] - 0.1, 0.15, 1.9, 1.1)
        h = h - 0.35 * _bump(ax, y, 1.6, 0.3, 0.8, 0.9)
        h = h + 0.5 * _bump(ax, y, t["eye_x"], 0.0, 1.2, 0.62)
        h = (
            h
            + t["ridge"] * _bump(ax, y, 2.9, t["brow_y"] - 0.1, 2.6, 0.75)
            + 0.12 * _bump(x, y, 0, 1.9, 1.3, 0.8)
        )
        along = np.clip((1.0 - y) / (1.0 - tip), 0, 1)
        height = t["nose_h"] * (0.16 + 0.84 * along**1.15) + t["hump"] * _bump(0, y, 0, 0.45 * tip, 1, 0.9)
        under = _ramp(y, tip - 1.0 + 0.5 * t["nose_up"], tip + 0.25)
        width = t["bridge"] + 0.35 * (t["nose_w"] - 0.2) * along**2
        h = h + height * under * _ramp(y, 2.6, 0.6) * np.exp(-((ax / (width + 0.25)) ** 2.0))
        h = h + 0.32 * _bump(x, y, 0, tip + 0.1 + 0.3 * t["nose_up"], 0.75, 0.62)
        h = h + 0.7 * _bump(ax, y, t["nose_w"] - 0.05, tip - 0.25, 0.55, 0.6)
        h = h - 0.3 * _bump(ax, y, t["nose_w"] + 0.75, tip - 0.2, 0.4, 0.9)
        h = (
            h
            + t["cheekbone"] * _bump(ax, y, 4.4, -2.2, 1.9, 1.5)
            - t["hollow"] * _bump(ax, y, 4.9, -5.8, 1.5, 1.7)
        )
        around = _bump(x, y, 0, my, 3.2, 2.2)
        h = h + 0.5 * around - 0.14 * _bump(x, y, 0, my + 1.4, 0.32, 0.7)
        h = h + 0.36 * _bump(x, y, 0, my + 0.4, t["mouth_w"] * 0.8, 0.42)
        h = h + 0.42 * _bump(x, y, 0, my - 0.6, t["mouth_w"] * 0.66, 0.48)
        h = h - 0.34 * _bump(x, y, 0, my, t["mouth_w"], 0.2)
        h = h - 0.22 * _bump(ax, y, t["mouth_w"] + 0.25, my - 0.05, 0.45, 0.5)
        h = h - 0.45 * _bump(x, y, 0, my - 1.75, 1.7, 0.55)
        return h + t["chin_out"] * _bump(x, y, 0, -t["length"] + 1.4, 1.6, 1.1)

    # ---- colour

    def _paint_skin(self, rng):
        t, x, y = self.traits, self._u, self._v
        ax, shape = np.abs(x), x.shape
        front = self._front
        albedo = np.broadcast_to(np.float32(t["skin"]), (*shape, 3)).copy()
        mottle = 0.018 * _noise(rng, shape, (24, 30)) + 0.012 * _noise(rng, shape, (80, 110))
        albedo *= 1 + mottle[..., None]
        red = 0.55 * _bump(ax, y, 4.3, -3.2, 1.9, 1.7) + 0.5 * _bump(x, y, 0, -t["nose_l"], 1.2, 1.0)
        red = red + 0.35 * _bump(x, y, 0, -t["length"] + 1.3, 1.4, 0.9)
        _tint(albedo, t["skin"] * [1.02, 0.8, 0.78], t["blush"] * red * front)
        bags = 0.16 + 0.3 * t["age"]
        _tint(
            albedo,
            t["skin"] * [0.78, 0.68, 0.66],
            bags * _bump(ax, y, t["eye_x"] - 0.3, -1.0, 1.4, 0.42) * front,
        )
        _tint(
            albedo,
            t["skin"] * [0.76, 0.68, 0.66],
            0.4 * _bump(ax, y, t["eye_x"] - 0.2, 0.8, 1.7, 0.5) * front,
        )
        crease = t["skin"] * [0.66, 0.54, 0.5]
        fold_x = t["nose_w"] + 0.75 + 0.42 * np.clip(-t["nose_l"] - y, 0, 5)
        fold = np.exp(-(((ax - fold_x) / 0.22) ** 2)) * _ramp(y, -t["mouth_y"] - 1.0, -t["mouth_y"] + 0.6)
        fold = fold * _ramp(-y, t["nose_l"] - 0.5, t["nose_l"] + 0.4)
        self._fold = (fold * front).astype(np.float32)
        _tint(albedo, crease, (0.06 + 0.3 * t["age"] ** 2) * self._fold)
        if t["age"] > 0.55:
            for level in (3.6, 4.5, 5.4):
                line = np.exp(-(((y - level - 0.1 * np.cos(x)) / 0.1) ** 2)) * _ramp(-ax, -3.6, -1.5)
                _tint(albedo, crease, 0.2 * (t["age"] - 0.4) * line * front)
        wing = np.exp(-(((np.hypot((ax - t["nose_w"]) / 1.0, y + t["nose_l"] + 0.2) - 0.55) / 0.16) ** 2))
        _tint(albedo, crease, 0.35 * wing * _ramp(ax, t["nose_w"] - 0.2, t["nose_w"] + 0.2) * front)
        hole = _bump(ax, y, 0.56 * t["nose_w"], -t["nose_l"] - 0.62, 0.32, 0.17)
        _tint(albedo, t["skin"] * [0.26, 0.16, 0.14], np.clip(1.25 * hole, 0, 1) * front)
        _tint(albedo, crease, 0.25 * _bump(x, y, 0, -t["nose_l"] - 0.95, 1.0, 0.24) * front)
        above = _ramp(y - self._hairline(self._phi)[None], -0.35, 0.45)
        _tint(albedo, 0.25 * t["skin"] + 0.6 * t["hair"], 0.9 * above)
        self._paint_spots(rng, albedo)
        self._paint_beard(rng, albedo)
        return albedo

    def _paint_spots(self, rng, albedo):
        t, x, y = self.traits, self._u, self._v
        brown = t["skin"] * [0.62, 0.46, 0.38]
        spots = [(rng.uniform(-5, 5), rng.uniform(-10, 5), rng.uniform(0.1, 0.17), 0.9)
                 for _ in range(rng.integers(0, 4))]  # fmt: skip
        if t["freckles"]:
            spots += [(rng.normal(0, 2.8), rng.normal(-2.4, 1.2), rng.uniform(0.07, 0.12), 0.55 * t["freckles"])
                      for _ in range(70)]  # fmt: skip
        for cx, cy, size, strength in spots:
            r = np.searchsorted(-y[:, 0], -cy)
            rows = slice(max(0, r - 5), r + 6)
            _tint(
                albedo[rows],
                brown,
                strength * _bump(x[rows], y[rows], cx, cy, size, size) * self._front[rows],
            )

    def _paint_beard(self, rng, albedo):
        t, x, y = self.traits, self._u, self._v
        if t["beard"] == "none":
            return
        ax, my, chin = np.abs(x), -t["mouth_y"], -t["length"]
        top, bottom = my + 1.5 - 0.14 * ax**2, my + 0.3 - 0.1 * ax
        moustache = _ramp(top - y, 0, 0.4) * _ramp(y - bottom, -0.1, 0.2) * _ramp(-ax, -3.3, -2.6)
        goatee = np.maximum(_ramp(-ax, -3.4, -2.6) * _ramp(-y, -my + 1.1, -my + 1.6),
                            _ramp(-np.abs(ax - t["mouth_w"] - 0.55), -0.75, -0.3) * _ramp(-y, -my - 0.8, -my)
                            * _ramp(y, chin, chin + 0.6))  # fmt: skip
        edge = my + 1.2 + 0.9 * (ax - 4.0)
        full = _ramp(edge - y, 0, 0.9) * _ramp(
            -_bump(x, y, 0, my - 0.2, t["mouth_w"] + 0.7, 1.35), -0.55, -0.25
        )
        mask = {"moustache": moustache, "goatee": np.maximum(goatee, moustache),
                "beard": np.maximum(np.maximum(full, moustache), goatee),
                "stubble": np.maximum(full, moustache)}[t["beard"]]  # fmt: skip
        mask = mask * self._front_side()
        strands = 0.75 + 0.22 * _noise(rng, x.shape, (70, 220))
        if t["beard"] == "stubble":
            _tint(albedo, 0.5 * t["skin"] + 0.3 * t["hair"], 0.42 * mask * np.clip(strands, 0.4, 1.2))
        else:
            _tint(albedo, t["hair"] * 0.9, np.clip(mask * np.clip(0.78 + 0.4 * strands, 0, 1), 0, 0.95))
            albedo *= (1 + mask * 0.22 * (strands - 0.75))[..., None]

    def _front_side(self):
        return _ramp(-np.abs(self._phi), -96, -82)[None]

    # ---- other parts

    def _ears(self):
        t = self.traits
        p, q = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 64))
        narrow = 1 - 0.32 * np.clip(-q, 0, 1)
        radius = np.hypot(p / narrow, q)
        keep = radius < 1
        out = np.radians(t["ear_out"])
        rim = 0.32 * np.exp(-(((radius - 0.86) / 0.16) ** 2)) * (p > -0.7) - 0.35 * _bump(
            p, q, -0.1, 0.05, 0.4, 0.55
        )
        rim = rim + 0.16 * np.exp(-(((radius - 0.5) / 0.12) ** 2)) * (q > -0.4)
        shade = np.clip(1 + 0.7 * (rim - 0.1), 0.55, 1.12)
        skin = t["skin"] * [1.0, 0.9, 0.87]
        parts = []
        for side in (-1, 1):
            along = np.array([side * np.sin(out), 0, -np.cos(out)])
            outward = np.array([side * np.cos(out), 0, np.sin(out)])
            centre = np.array([side * t["width"] * 0.955, -1.6, 0.2])
            points = (centre + (1.7 * t["ear"] * (p * 0.95 + 0.75) + 0.22 * q)[..., None] * along
                      + 0.9 * rim[..., None] * outward + 3.0 * t["ear"] * q[..., None] * np.array([0, 1, 0]))  # fmt: skip
            normal = outward - np.clip(9 * np.gradient(rim, axis=1), -0.7, 0.7)[..., None] * along
            normal /= np.linalg.norm(normal, axis=2, keepdims=True)
            parts.append((points[keep], normal[keep], (skin * shade[..., None])[keep]))
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def _neck(self):
        t = self.traits
        angle, y = np.meshgrid(np.radians(np.linspace(-100, 100, 130)), np.linspace(-5, -16, 76))
        radius = t["neck"] * (1 + 0.02 * np.maximum(0, -10 - y) ** 1.6)
        points = np.stack([radius * np.sin(angle), y, radius * np.cos(angle) - 1.8], axis=2)
        normal = np.stack([np.sin(angle), 0.1 * np.ones_like(y), np.cos(angle)], axis=2)
        shade = 0.62 + 0.25 * _ramp(-y, t["length"] - 3, t["length"] + 4)
        return points.reshape(-1, 3), normal.reshape(-1, 3), (t["skin"] * shade[..., None]).reshape(-1, 3)

    def _hairline(self, phi):
        """Lowest y of the hair at `phi` degrees (columns), image left negative."""
        t, p = self.traits, np.abs(phi)
        h, part = t["hairline"], t["parting"]
        if t["style"] == "fringe":
            front = np.interp(p, [0, 30, 48, 60], [h - 3.3, h - 3.4, h - 3.9, 2.0]) + 0.7 * part * phi / 40
        else:
            rise = t["recede"] * np.exp(-(((p - 33) / 12) ** 2))
            front = np.interp(p, [0, 25, 45, 58], [h, h - 0.1, h - 1.3, 3.6]) + rise + 0.35 * part * phi / 40
        if t["style"] == "bald":
            front = np.interp(p, [0, 60, 75], [14, 12, 4.5])
        low = -15.0 if t["long"] else -1.2
        side = np.interp(p, [58, 66, 74, 82, 90, 108, 118, 180], [3.6, 2.0, low, low, 0.9, 0.6, -3, -6.5])
        if t["style"] == "bald":
            side = np.interp(p, [58, 78, 84, 90, 108, 118, 180], [12, 3.0, -0.5, 0.9, 0.6, -3, -6])
        if t["long"]:
            side = np.interp(p, [56, 64, 72, 180], [3.6, 0.5, -15.0, -15.0])
        blend = _ramp(p, 52, 64)
        return (front * (1 - blend) + side * blend).astype(np.float32)

    def _hair(self, rng):
        """The hair as a part, and which points of the head's grid it leaves bare."""
        t = self.traits
        finer = 1.35 if t["long"] else 1.0
        phi = np.linspace(-180, 180, int(_HAIR_COLUMNS * finer), dtype=np.float32)
        bottom, count = (-12.5, 2 * _HAIR_ROWS) if t["long"] else (-7.0, _HAIR_ROWS)
        theta = np.radians(np.linspace(88, 0, _HAIR_DOME_ROWS, endpoint=False))
        rows = np.concatenate([3 + (t["top"] - 3) * np.sin(theta), np.linspace(3, bottom, count)]).astype(
            np.float32
        )
        above, thick, strands = self._strands(rng, rows[:, None], phi[None])
        y, a, f, b = self._cross
        held = np.maximum(rows, -1.0) if t["long"] else rows
        a, f, b = (np.interp(held, y[::-1], c[::-1]).astype(np.float32)[:, None] for c in (a, f, b))
        sine, cosine = (wave(np.radians(phi))[None] for wave in (np.sin, np.cos))
        round_ = (1 - np.abs(sine) ** t["flat"]) ** (1 / t["flat"])
        x = (a + thick) * sine
        z = np.where(cosine > 0, (f + thick) * round_, -(b + thick) * np.abs(cosine))
        up = rows[:, None] + 0.9 * thick * _ramp(rows[:, None], 3, t["top"])
        points = np.stack(np.broadcast_arrays(x, up, z), axis=2)
        band = np.exp(-(((rows[:, None] - 7.6 - 0.4 * strands) / 1.3) ** 2))
        tone = np.clip(0.95 + 0.22 * strands + 0.35 * band * (1 - 0.5 * t["curl"]), 0.45, 1.7)
        tone = tone * (0.8 + 0.2 * _ramp(above, 0.0, 1.2))
        albedo = np.clip(np.float32(t["hair"]) * tone[..., None] + 0.02, 0, 0.95)
        # Thin at its edge: single points, not a line.
        keep = above + 0.14 * rng.standard_normal(above.shape, np.float32) > 0.12
        bare = self._v < self._hairline(self._phi)[None] + 0.9
        return (points[keep], _normals(points)[keep], albedo[keep]), bare.ravel()

    def _strands(self, rng, y, phi):
        """Height above the hairline, thickness of the hair (both cm) and lightness of its strands, (rows, columns)."""
        t, shape = self.traits, (y.size, phi.size)
        edge = 0.16 * _noise(rng, (1, phi.size), (2, 120)) + 0.12 * _noise(rng, (1, phi.size), (2, 30))
        edge = edge * (0.35 + 0.65 * _ramp(-np.abs(phi), -64, -52))
        above = y - self._hairline(phi[0])[None] - edge
        curl = t["curl"]
        strands = (1 - curl) * _noise(rng, shape, (5, 150)) + curl * _noise(rng, shape, (38, 80))
        strands = 0.7 * strands + 0.4 * _noise(rng, shape, (7, 40))
        thick = t["volume"] * (1 - np.exp(-np.clip(above, 0, None) / 0.9)) * (0.75 + 0.35 * _ramp(y, 0, 8))
        thick = (
            thick * (1 + 0.25 * np.clip(phi / 60, -1, 1) * t["parting"])
            + 0.12
            + (0.04 + 0.14 * curl) * strands
        )
        if t["long"]:
            thick = thick + 0.9 * _ramp(-y, -3, 7) * _ramp(np.abs(phi), 50, 85)
        return above, thick, strands

    def _glasses(self, rng):
        t = self.traits
        colour = np.array([[0.06, 0.06, 0.07], [0.25, 0.14, 0.08], [0.55, 0.52, 0.48]])[rng.integers(3)]
        wide, high, power = rng.uniform(2.15, 2.6), rng.uniform(1.5, 1.9), rng.uniform(2.0, 4.5)
        thick, z = rng.uniform(0.1, 0.2), t["depth"] + 1.15
        angle = np.linspace(0, 2 * np.pi, 280)
        c, s = np.cos(angle), np.sin(angle)
        ring = np.stack(
            [wide * np.sign(c) * np.abs(c) ** (2 / power), high * np.sign(s) * np.abs(s) ** (2 / power)], 1
        )
        curves = []
        for side in (-1, 1):
            cx = side * (t["eye_x"] + 0.15)
            curves.append(
                np.column_stack([ring[:, 0] + cx, ring[:, 1] - 0.15, z - 0.06 * np.abs(ring[:, 0] + cx)])
            )
            k = np.linspace(0, 1, 110)
            outer = abs(cx) + wide
            curves.append(np.column_stack([side * (outer + (t["width"] + 0.25 - outer) * k**0.5), 0.5 + 0 * k,
                                           z - 0.35 - (z - 0.35) * k]))  # fmt: skip
        gap = t["eye_x"] + 0.15 - wide
        k = np.linspace(-1, 1, 40)
        curves.append(np.column_stack([gap * k, 0.25 + 0.2 * (1 - k**2), z + 0.12 * (1 - k**2)]))
        points = np.concatenate(curves)
        points = np.concatenate(
            [
                points + np.array([dx, dy, 0])
                for dx in (-thick / 2, thick / 2)
                for dy in (-thick / 2, thick / 2)
            ]
        )
        return points, np.zeros_like(points), np.broadcast_to(colour, points.shape)

    def _join(self, parts: dict[str, _Part]) -> None:
        """One cloud of all parts, coordinates first: (3, n) float32 positions, normals and colours."""
        sizes = np.cumsum([0, *(len(part[0]) for part in parts.values())])
        spans = {name: slice(a, b) for name, a, b in zip(parts, sizes[:-1], sizes[1:], strict=True)}
        self._points, self._normals, self._albedo = (
            np.ascontiguousarray(np.concatenate([part[i] for part in parts.values()]).T, np.float32)
            for i in range(3)
        )
        self._plane = dot(self._normals, self._points)
        self._face, self._neck_span = spans["face"], spans["neck"]
        self._gloss = np.zeros(sizes[-1], np.float32)
        self._gloss[self._face] = 0.09
        # Hair that hangs down is seen from inside too.
        self._two_sided = np.zeros(sizes[-1], bool)
        self._two_sided[spans["hair"]] = self.traits["long"] & (self._points[1, spans["hair"]] < 1.5)
        self._plane[spans["hair"]] -= 25.0  # curls: do not cull where only the strand turns away

    def _find_places(self) -> None:
        """Indices into the cloud of the landmarks and of what is painted anew for every picture."""
        t, x, y = self.traits, self._u, self._v
        place = np.full(x.size, -1)
        place[self._kept] = np.arange(self._kept.sum())
        place = place.reshape(x.shape)
        front = (self._front > 0.02) & (place >= 0)

        def nearest(u, v):
            return int(
                place[np.unravel_index(np.argmin(np.where(front, (x - u) ** 2 + (y - v) ** 2, 1e9)), x.shape)]
            )

        def patch(mask):
            index = place[mask & front]
            return index, x[mask & front], y[mask & front], self._albedo[:, index].T.copy()

        ex, my = t["eye_x"], t["mouth_y"]
        self._landmarks = [nearest(-ex, 0), nearest(ex, 0), nearest(0, 0.1 - t["nose_l"]),
                           nearest(-t["mouth_w"], -my), nearest(t["mouth_w"], -my)]  # fmt: skip
        ax = np.abs(x)
        self._eyes = patch((np.abs(ax - ex) < 1.35 * t["eye_w"]) & (y > -1.4) & (y < 1.7))
        self._mouth = patch((ax < 1.45 * t["mouth_w"]) & (np.abs(y + my + 0.2) < 2.2))
        folds = (self._fold > 0.05) & front
        self._folds = place[folds], self._fold[folds]
        rows = np.flatnonzero((y[:, 0] > 0.2) & (y[:, 0] < 4.6))
        columns = np.flatnonzero(front[rows[0]] & (ax[rows[0]] < 6.6))
        block = np.ix_(rows, columns)
        # Where hair covers the brow there is no point to paint: -1, dropped with the painting.
        self._brow_places = place[block]
        self._brow = self._paint_brows(ax[block], y[block])
        self._row_height = float(-np.diff(y[rows, 0]).mean())

    # ---- per picture

    def _paint_brows(self, ax, y):
        """How much of the brow's colour, 0..1, at rest."""
        t = self.traits
        k = np.clip((ax - t["brow_in"]) / 4.0, 0, 1)
        middle = t["brow_y"] + t["brow_arch"] * (np.sin(np.pi * k**1.25) - 0.35) - 0.35 * k**3
        half = t["brow_t"] * (0.75 + 0.5 * np.sin(np.pi * k**0.6)) * (1 - 0.75 * k**2)
        hairy = 0.85 + 0.15 * np.sin(9 * ax + 5 * y)
        inside = _ramp(half - np.abs(y - middle), -0.12, 0.16) * _ramp(
            ax, t["brow_in"] - 0.25, t["brow_in"] + 0.35
        )
        return t["brow_dark"] * hairy * inside * _ramp(-ax, -t["brow_in"] - 4.1, -t["brow_in"] - 3.5)

    def _painted(self, c: Conditions) -> np.ndarray:
        """Colours (3, n) with brows, eyes and mouth as in this picture."""
        t = self.traits
        albedo = self._albedo.copy()
        amount = np.roll(self._brow, -round(c.brows / self._row_height), axis=0)
        painted = (amount > 0.02) & (self._brow_places >= 0)
        _tint_at(albedo, self._brow_places[painted], t["hair"] * 0.75, amount[painted])
        if c.smile > 0:
            _tint_at(
                albedo, self._folds[0], t["skin"] * _f32(0.64, 0.5, 0.46), 0.32 * c.smile * self._folds[1]
            )
        for (index, *_), colour in ((self._eyes, self._paint_eyes(c)), (self._mouth, self._paint_mouth(c))):
            albedo[:, index] = colour.T
        return albedo

    def _paint_eyes(self, c: Conditions):
        t = self.traits
        _, x, y, base = self._eyes
        colour, ax, side = base.copy(), np.abs(x), np.sign(x)
        across = (ax - t["eye_x"]) / t["eye_w"]
        level = y - t["eye_tilt"] * across * t["eye_w"]
        inside = np.clip(1 - np.abs(across) ** 2.3, 0, 1)
        lower = -0.62 * t["eye_h"] * inside
        upper = lower + (0.06 + 1.62 * t["eye_h"] * c.eyes) * inside**0.75
        _tint(colour, t["skin"] * _f32(0.7, 0.58, 0.54),
              0.6 * np.exp(-(((level - upper - t["fold"]) / 0.1) ** 2)) * _ramp(inside, 0.05, 0.4))  # fmt: skip
        ball = np.clip((upper - level) / 0.08, 0, 1) * np.clip((level - lower) / 0.08, 0, 1) * (inside > 0)
        white = _f32(0.96, 0.94, 0.93) - 0.22 * np.clip(np.abs(across), 0, 1)[..., None] ** 2
        white = white * (0.72 + 0.28 * _ramp(upper - level, 0.0, 0.45))[..., None]
        dx, dy = x - side * t["eye_x"] - c.gaze[0], level - 0.06 - c.gaze[1]
        d = np.hypot(dx, dy) / t["iris_r"]
        ring = (0.85 + 0.5 * _ramp(d, 0.35, 0.7) - _ramp(d, 0.75, 1.0)) * (0.85 + 0.3 * _ramp(-dy, -0.3, 0.3))
        _tint(white, t["iris"] * ring[..., None], 1 - _ramp(d, 0.9, 1.08))
        _tint(white, _f32(0.02, 0.02, 0.02), 1 - _ramp(d, 0.36, 0.5))
        _tint(white, _f32(1, 1, 1), np.clip(1.3 * _bump(dx, dy, 0.2, 0.2, 0.14, 0.14), 0, 1))
        _tint(colour, white, ball)
        lash = np.exp(-(((level - upper - 0.02) / (0.1 if t["sex"] > 0 else 0.14)) ** 2)) * _ramp(
            inside, 0, 0.15
        )
        _tint(colour, _f32(0.05, 0.04, 0.04), 0.85 * lash)
        under = np.exp(-(((level - lower) / 0.08) ** 2)) * _ramp(inside, 0.02, 0.2)
        _tint(colour, t["skin"] * _f32(0.42, 0.32, 0.3), 0.5 * under)
        _tint(colour, t["skin"] * _f32(0.85, 0.5, 0.48), 0.7 * _bump(across, level, -0.96, -0.02, 0.1, 0.12))
        return colour

    def _paint_mouth(self, c: Conditions):
        t = self.traits
        _, x, y, base = self._mouth
        colour, smile = base.copy(), max(0.0, c.smile)
        across = x / (t["mouth_w"] * (1 + 0.22 * c.smile))
        inside = np.clip(1 - across**2, 0, 1)
        level = y + t["mouth_y"] - 0.5 * c.smile * np.clip(np.abs(across), 0, 1.2) ** 1.8 + 0.1 * c.smile
        level = level + 0.1 * np.cos(2 * np.pi * np.clip(across, -1, 1)) * inside - 0.05
        gap = (0.45 * c.mouth + 0.34 * max(0.0, c.smile - 0.3)) * inside
        top, bottom = 0.45 * gap, -0.9 * gap
        bow = 1 - t["bow"] * np.exp(-((x / 0.32) ** 2)) + 0.12 * np.exp(-(((np.abs(x) - 0.6) / 0.4) ** 2))
        upper = top + t["upper"] * (1 - 0.25 * smile) * inside**0.8 * bow
        lower = bottom - t["lower"] * (1 - 0.2 * smile) * inside**0.7
        lips = np.clip((upper - level) / 0.1, 0, 1) * np.clip((level - lower) / 0.1, 0, 1) * (inside > 0)
        tone = 1 - 0.14 * _ramp(level, 0.0, 0.3) + 0.1 * _bump(x, level, 0, bottom - 0.35, 1.2, 0.2)
        _tint(colour, t["lips"] * tone[..., None], 0.9 * lips)
        cavity = np.clip((top - level) / 0.07, 0, 1) * np.clip((level - bottom) / 0.07, 0, 1) * (gap > 0.03)
        hole = np.broadcast_to(_f32(0.16, 0.05, 0.05), colour.shape).copy()
        _tint(
            hole,
            _f32(0.9, 0.88, 0.84),
            _ramp(level, top - 0.85, top - 0.6) * _ramp(-np.abs(across), -0.88, -0.6),
        )
        _tint(colour, hole, cavity)
        seam = np.exp(-((level / 0.075) ** 2)) * _ramp(inside, 0.0, 0.1) * (gap < 0.12)
        _tint(colour, t["lips"] * _f32(0.42, 0.3, 0.3), 0.85 * seam)
        _tint(
            colour, t["skin"] * _f32(0.5, 0.38, 0.36), 0.6 * _bump(np.abs(across), level, 1.0, 0, 0.09, 0.16)
        )
        return colour

    def _posed(self, c: Conditions) -> np.ndarray:
        """Positions (3, n) with the jaw dropped by the open mouth and cheeks lifted by a smile."""
        points = self._points.copy()
        x, y, z = points[:, self._face]
        front, t = z > 0, self.traits
        if c.mouth > 0:
            y -= 0.75 * c.mouth * _ramp(-y, t["mouth_y"], t["mouth_y"] + 3.0) * front
        if c.smile > 0:
            z += 0.3 * c.smile * _bump(np.abs(x), y, 4.0, -3.4, 1.5, 1.3) * front
        return points

    def render(self, c: Conditions) -> np.ndarray:
        """One aligned picture: uint8 (112, 112, 3) RGB."""
        rng = np.random.default_rng(c.seed)
        turn = rotation(c.yaw, c.pitch, c.roll)
        points = self._posed(c)
        marks = project(turned(turn, points[:, self._landmarks]), c.distance).T.astype(np.float64)
        wobble = 0.10 + 0.10 * abs(c.yaw) / 45.0  # centimetres: landmark detectors are worse on profiles
        matrix = similarity(marks + rng.normal(0, wobble, marks.shape), TEMPLATE * _SCALE)
        canvas = splat(*self._visible(points, turn, matrix, c), SIDE * _SCALE)
        return sensor(over_background(canvas, rng), c, rng)

    def _visible(self, points, turn, matrix, c):
        """Pixel, colour and depth of the points that face the camera and fall into the picture."""
        camera = turn.T @ [0, 0, c.distance]
        facing = dot(self._normals, camera.astype(np.float32)) >= self._plane
        facing |= self._two_sided
        facing[self._neck_span] = True
        seen = np.flatnonzero(facing)
        place = turned(turn, _take(points, seen))
        # The shoulders stay behind when the head turns.
        neck = slice(*np.searchsorted(seen, [self._neck_span.start, self._neck_span.stop]))
        half = rotation(0.35 * c.yaw, 0, 0.5 * c.roll)
        place[:, neck] = turned(half, self._points[:, self._neck_span])
        flat = turned(matrix[:, :2], project(place, c.distance)) + matrix[:, 2:].astype(np.float32)
        across, down = flat.astype(np.int32)
        limit = SIDE * _SCALE - 1
        inside = np.flatnonzero((across >= 0) & (across < limit) & (down >= 0) & (down < limit))
        seen = seen[inside]
        normal = turned(turn, _take(self._normals, seen))
        colours = shade(_take(self._painted(c), seen), normal, self._gloss[seen], c)
        return down[inside] * (limit + 1) + across[inside], colours, place[2, inside]


def _take(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.stack([row.take(index) for row in rows])


def _f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _tint(albedo, colour, amount) -> None:
    """Mix `colour` into `albedo` (..., 3) in place by `amount` (...), 0..1."""
    albedo += (np.float32(colour) - albedo) * np.minimum(amount, 1).astype(np.float32)[..., None]


def _tint_at(albedo, index, colour, amount) -> None:
    """The same for the points `index` of a (3, n) array."""
    albedo[:, index] += (np.float32(colour)[:, None] - albedo[:, index]) * np.float32(amount)


# -------------------------------------------------------------------------------------------- camera


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) matrix of a head turned by yaw, then pitch, then roll, in degrees as in `Conditions`."""
    a, b, c = np.radians([-yaw, pitch, roll])
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    tilt = np.array([[np.cos(c), np.sin(c), 0], [-np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return tilt @ nod @ turn


def turned(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`matrix` (m, m) @ `points` (m, n) float32; not by BLAS, whose rounding depends on its threads."""
    return np.stack([dot(row, points) for row in matrix.astype(np.float32)])


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum over the first axis of a * b, for two or three rows."""
    total = a[0] * b[0]
    for left, right in zip(a[1:], b[1:], strict=True):
        total = total + left * right
    return total


def project(points: np.ndarray, distance: float) -> np.ndarray:
    """(3, n) camera coordinates to (2, n) picture coordinates, y down, centimetres at z = 0."""
    scale = np.float32(distance) / (np.float32(distance) - points[2])
    return np.stack([points[0] * scale, -points[1] * scale])


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(2, 3) least-squares rotation, scale and shift from (n, 2) `source` onto `target`."""
    s, t = source - source.mean(0), target - target.mean(0)
    power = (s**2).sum()
    a = (s * t).sum() / power
    b = (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum() / power
    linear = np.array([[a, -b], [b, a]])
    return np.column_stack([linear, target.mean(0) - linear @ source.mean(0)])


def shade(albedo, normal, gloss, c: Conditions) -> np.ndarray:
    """Colours (3, n) float32 0..1: hemispheric ambient, wrapped Lambert and a soft highlight."""
    light = np.float32(c.light)
    diffuse = np.clip((dot(light, normal) + np.float32(0.25)) * np.float32(0.8), 0, None)
    half = light + _f32(0, 0, 1)
    shine = np.clip(dot(half / np.linalg.norm(half), normal), 0, None)
    shine *= shine  # to the 16th
    shine *= shine
    shine *= shine
    shine *= shine * gloss
    sky = 0.86 + np.float32(0.14) * normal[1]
    colours = np.empty_like(albedo)
    for channel, key, ambient in zip(range(3), np.float32(c.key), np.float32(c.ambient), strict=True):
        colours[channel] = albedo[channel] * (sky * ambient + diffuse * key) + shine * key
    return colours


def splat(pixels, colours, depth, side: int) -> np.ndarray:
    """Paint points from far to near, 2x2 pixels each: uint8 (side, side, 4), alpha 0 where nothing is."""
    order = np.argsort((depth * 800).astype(np.int16), kind="stable")  # 16 bits: a radix sort
    packed = np.full((len(order), 4), 255, np.uint8)
    packed[:, :3] = np.clip(colours * 255, 0, 255).T
    packed = packed.view(np.uint32).ravel()[order]
    where = pixels.astype(np.intp)[order]
    canvas = np.zeros(side * side, np.uint32)
    canvas[where[:, None] + np.array([0, 1, side, side + 1])] = packed[:, None]
    return _close_holes(canvas.view(np.uint8).reshape(side, side, 4))


def _close_holes(canvas):
    alpha = np.ascontiguousarray(canvas[..., 3])
    closed = cv2.morphologyEx(alpha, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    holes = (closed > 0) & (alpha == 0)
    if holes.any():
        mean = cv2.blur(canvas, (5, 5))[holes].astype(np.float32)
        canvas[holes] = np.clip(mean * 255 / np.maximum(mean[:, 3:], 1), 0, 255)
    return canvas


def over_background(canvas, rng) -> np.ndarray:
    """The head before an out-of-focus background: uint8 (112, 112, 3)."""
    grey, tint = rng.uniform(25, 215), rng.normal(0, 16, 3)
    blobs = grey + tint + rng.uniform(0, 1) * (rng.normal(0, 34, (5, 5, 1)) + rng.normal(0, 11, (5, 5, 3)))
    back = cv2.resize(np.clip(blobs, 0, 255).astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    head = cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.add(head[..., :3], cv2.multiply(back, cv2.merge([255 - head[..., 3]] * 3), scale=1 / 255))


def sensor(picture, c: Conditions, rng) -> np.ndarray:
    """Resolution, blur and noise of a camera."""
    if c.resolution < SIDE:
        small = cv2.resize(picture, (c.resolution, c.resolution), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    if c.blur > 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), c.blur)
    grain = rng.standard_normal((SIDE, SIDE), np.float32)[..., None] * np.float32(c.noise)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)
