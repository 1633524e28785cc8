"""The computations of the demo: the code that is sent to islands, and functions that compute the same directly.

`SHAPLEY`, `VIRGO` and `MATCH` run in sessions, `COLOURS` runs in a Python process at the laptop. The
functions compute the expected results in plain Python, for comparison.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from island.cli.demo.data import Row

M87 = (187.70593, 12.39112)
"""ICRS position of M87, degrees."""

GALACTIC_CENTRE = (266.405, -28.936)
"""ICRS position of the centre of the Galaxy, degrees."""

NOT_OURS = ((80.9, -69.8, 16.0), (13.2, -72.8, 4.0), (10.685, 41.27, 3.0), (40.0, -34.45, 1.5))
"""Circles (ra, dec, radius in degrees) around the Magellanic Clouds, M31 and the Fornax dwarf."""

FOREGROUND = ("NGC0104", "NGC0362")
"""Two clusters of the Galaxy in the foreground of the Small Magellanic Cloud."""

_GEOMETRY = """
import math
def unit(ra, dec):
    a, d = math.radians(ra), math.radians(dec)
    return (math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d))
def apart(p, q):
    u, v = unit(*p), unit(*q)
    x = math.dist(u, v) / 2
    return math.degrees(2 * math.asin(min(1.0, x)))
"""

SHAPLEY = f"""{_GEOMETRY}
not_ours, foreground = {NOT_OURS!r}, {FOREGROUND!r}
rows = spark.sql("SELECT name, ra, dec FROM VIEW WHERE type = 'GCl' AND ra IS NOT NULL").collect()
ours = [(r.ra, r.dec) for r in rows
        if r.name in foreground or not any(apart((r.ra, r.dec), c[:2]) < c[2] for c in not_ours)]
mean = [sum(axis) for axis in zip(*(unit(*p) for p in ours))]
ra, dec = math.degrees(math.atan2(mean[1], mean[0])) % 360, math.degrees(math.atan2(mean[2], math.hypot(*mean[:2])))
print(len(ours), round(ra, 6), round(dec, 6), round(apart((ra, dec), {GALACTIC_CENTRE!r}), 6))
"""

VIRGO = f"""{_GEOMETRY}
import statistics
rows = spark.sql("SELECT ra, dec, radvel FROM VIEW WHERE radvel BETWEEN -500 AND 3000 AND ra IS NOT NULL").collect()
speed = [r.radvel for r in rows if apart((r.ra, r.dec), {M87!r}) < 6.0]
print(len(speed), round(statistics.median(speed), 6), round(statistics.pstdev(speed), 6))
"""

COLOURS = """
import pandas, sys
table = pandas.read_parquet(sys.argv[1], columns=["hubble", "bmag", "kmag"])
table["colour"] = table.bmag - table.kmag
for kind in ("E", "S0", "Sa", "Sb", "Sc", "Scd"):
    print(kind, round(table[table.hubble == kind].colour.median(), 6))
"""

MATCH = f"""{_GEOMETRY}
alerts = spark.sql("SELECT objectId, tns, candidate.ra AS ra, candidate.dec AS dec FROM ALERTS").collect()
galaxies = spark.sql("SELECT name, ra, dec FROM GALAXIES WHERE ra IS NOT NULL").collect()
for a in sorted(alerts, key=lambda a: a.objectId):
    for g in galaxies:
        if abs(g.dec - a.dec) < 1 / 60 and apart((a.ra, a.dec), (g.ra, g.dec)) < 1 / 60:
            print(a.objectId, a.tns.replace(" ", "_"), g.name, round(apart((a.ra, a.dec), (g.ra, g.dec)) * 60, 4))
"""

KINDS = ("E", "S0", "Sa", "Sb", "Sc", "Scd")


def unit(ra: float, dec: float) -> tuple[float, float, float]:
    """Return the unit vector of a direction; `ra` and `dec` are in degrees."""
    a, d = math.radians(ra), math.radians(dec)
    return math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d)


def apart(p: tuple[float, float], q: tuple[float, float]) -> float:
    """Return the angle between two directions (ra, dec); all in degrees."""
    return math.degrees(2 * math.asin(min(1.0, math.dist(unit(*p), unit(*q)) / 2)))


def shapley(rows: Sequence[Row]) -> list[float]:
    """Return number of globular clusters of the Galaxy, ra and dec of their mean direction, and the distance of
    that direction from the Galactic centre; angles in degrees."""
    ours = [
        (row["ra"], row["dec"])
        for row in rows
        if row["type"] == "GCl"
        and row["ra"] is not None
        and (
            row["name"] in FOREGROUND or not any(apart((row["ra"], row["dec"]), (c[0], c[1])) < c[2] for c in NOT_OURS)
        )
    ]
    x, y, z = (sum(axis) for axis in zip(*(unit(*p) for p in ours), strict=True))
    ra, dec = math.degrees(math.atan2(y, x)) % 360, math.degrees(math.atan2(z, math.hypot(x, y)))
    return [len(ours), ra, dec, apart((ra, dec), GALACTIC_CENTRE)]


def virgo(rows: Sequence[Row]) -> list[float]:
    """Return number, median velocity and velocity dispersion of the galaxies within 6° of M87.

    Velocities are in km/s; only galaxies with −500 to 3,000 km/s count.
    """
    speed = [
        row["radvel"]
        for row in rows
        if row["ra"] is not None
        and row["radvel"] is not None
        and -500 <= row["radvel"] <= 3000
        and apart((row["ra"], row["dec"]), M87) < 6
    ]
    return [len(speed), statistics.median(speed), statistics.pstdev(speed)]


def colours(rows: Sequence[Row]) -> list[float]:
    """Return the median B−K (magnitudes) of each of `KINDS`."""
    return [
        statistics.median(
            row["bmag"] - row["kmag"]
            for row in rows
            if row["hubble"] == kind and row["bmag"] is not None and row["kmag"] is not None
        )
        for kind in KINDS
    ]


def within(row: Row, centre: tuple[float, float], radius: float) -> bool:
    """Return whether a row is within `radius` degrees of `centre`; False if it has no position."""
    return row["ra"] is not None and apart((row["ra"], row["dec"]), centre) <= radius


def match(alerts: Sequence[Row], galaxies: Sequence[Row]) -> list[str]:
    """Return a line `objectId tns galaxy arcmin` for each alert within 1′ of a galaxy, as `MATCH` prints it."""
    lines = []
    for alert in sorted(alerts, key=lambda row: str(row["objectId"])):
        for galaxy in galaxies:
            if galaxy["ra"] is None or abs(galaxy["dec"] - alert["dec"]) >= 1 / 60:
                continue
            distance = apart((alert["ra"], alert["dec"]), (galaxy["ra"], galaxy["dec"]))
            if distance < 1 / 60:
                name = alert["tns"].replace(" ", "_")
                lines.append(f"{alert['objectId']} {name} {galaxy['name']} {distance * 60:.4f}")
    return lines
