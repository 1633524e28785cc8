"""Writes three parts of OpenNGC, the catalogue of the package pyongc, into a folder: `example_data.py FOLDER`."""

import sys
from pathlib import Path

from island.cli.demo import data

NEBULAE = data.NEBULAE
CLUSTERS = tuple(kind for kind in data.CLUSTERS if kind not in NEBULAE)


def main(folder: Path) -> None:
    """Write galaxies and clusters as Parquet, and nebulae as Avro, each into a folder of its own."""
    rows = data.catalogue()
    for name, types, write in (
        ("galaxies.parquet", data.GALAXIES, data.write_parquet),
        ("clusters.parquet", CLUSTERS, data.write_parquet),
        ("nebulae.avro", NEBULAE, data.write_avro),
    ):
        path = folder / name.partition(".")[0] / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():  # a second start leaves the published files as they are
            write(data.of_types(rows, types), path)


main(Path(sys.argv[1]))
