"""Spark in the process of a session or batch: its JVM, its settings, and the hook that creates the input views.

Imported only in the processes of sessions and batches.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any, Final

from island.engine.input_views import create_views
from island.engine.jvm import Jvm
from island.engine.protocol import StartChild
from island.errors import EngineFailed

CLOSED: Final = {
    "spark.driver.host": "localhost",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.authenticate": "true",
    "spark.network.crypto.enabled": "true",
    "spark.network.crypto.saslFallback": "false",
}
"""Settings that close Spark's ports to other accounts of the machine, also for contexts that user code starts.

With a local master, Spark generates a random secret for each context and keeps it in Java's memory. It is not in a
file, in the environment or on a command line.
"""


def spark_home() -> str:
    """The folder of Spark in the package pyspark. Raises `EngineFailed` if pyspark is not installed."""
    spec = importlib.util.find_spec("pyspark")
    if spec is None or not spec.origin:
        raise EngineFailed(
            "pyspark is not installed",
            hint="Install the extra `spark`, in a clone: pip install '.[spark]'.",
        )
    return str(Path(spec.origin).parent)


def settings(start: StartChild) -> dict[str, str]:
    """Spark's settings: defaults for a laptop, then the settings of the client, then those that the engine enforces."""
    scratch = Path(start.scratch)
    return {
        "spark.app.name": "island",
        "spark.sql.shuffle.partitions": str(max(2, start.cores)),
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        **start.conf,
        "spark.master": f"local[{start.cores}]",
        "spark.driver.memory": start.memory,
        **CLOSED,
        "spark.local.dir": str(scratch / "tmp"),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.catalogImplementation": "in-memory",
    }


class SparkDriver:
    """The Spark JVM of this process. It is started at once; Python waits for it when it first uses it."""

    def __init__(self, start: StartChild) -> None:
        self.start = start
        self.jvm = Jvm(start, spark_home(), settings(start))

    def install(self) -> None:
        """Import pyspark while the JVM starts, and hook it: use this JVM, create the input views, enforce `CLOSED`."""
        import pyspark.context
        import pyspark.sql.session

        launch = pyspark.context.launch_gateway
        session = pyspark.sql.session.SparkSession
        construct = session.__init__
        initialize = pyspark.context.SparkContext._initialize_context

        def launch_gateway(*args: Any, **kwargs: Any) -> Any:
            port, secret = self.jvm.wait()
            os.environ |= {"PYSPARK_GATEWAY_PORT": str(port), "PYSPARK_GATEWAY_SECRET": secret}
            try:
                return launch(*args, **kwargs)
            finally:
                # Processes that user code starts must not inherit the secret.
                del os.environ["PYSPARK_GATEWAY_PORT"], os.environ["PYSPARK_GATEWAY_SECRET"]

        def init(this: Any, *args: Any, **kwargs: Any) -> None:
            construct(this, *args, **kwargs)
            create_views(this, self.start.views, self.start.aliases)

        def initialize_context(this: Any, jconf: Any) -> Any:
            for key, value in CLOSED.items():
                jconf.set(key, value)
            return initialize(this, jconf)

        pyspark.context.launch_gateway = launch_gateway
        pyspark.context.SparkContext._initialize_context = initialize_context
        session.__init__ = init

    def session(self) -> tuple[Any, Any, Any]:
        """Start Spark and create the input views. Returns `spark`, `sc` and `sqlContext`."""
        from pyspark.sql import SparkSession, SQLContext

        spark = SparkSession.builder.getOrCreate()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            context = SQLContext(spark.sparkContext, spark)
        return spark, spark.sparkContext, context
