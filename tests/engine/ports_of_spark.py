"""A Python file that reports Spark's ports and their content. It is run by stock Spark, as a batch and in a session.

As a program (`ports_of_spark.py FOLDER`) it starts a context with all security settings off, writes FOLDER/told, waits
for a reader of the pipe FOLDER/asked, then writes FOLDER/uploaded, and keeps running.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

OPEN = {
    "spark.authenticate": "false",
    "spark.network.crypto.enabled": "false",
    "spark.driver.bindAddress": "0.0.0.0",
    "spark.ui.enabled": "true",
    "spark.ui.port": "0",
}
UPLOADED = "broadcast_4242_piece0"


def told(spark: Any) -> dict[str, Any]:
    """The ports, the name of a block with the session's data, and two messages that any Spark can create."""
    context = spark.sparkContext
    jvm = context._jvm
    env = jvm.org.apache.spark.SparkEnv.get()
    rows = context.parallelize(["a row of the session's own"], 1).map(str.strip).cache()
    rows.count()
    java_object = jvm.java.lang.Class.forName("java.lang.Object")
    tag = jvm.scala.reflect.ClassTag.apply(java_object)
    serializer = env.closureSerializer().newInstance()
    check = getattr(jvm.org.apache.spark.rpc.netty, "RpcEndpointVerifier$CheckExistence")("MapOutputTracker")
    level = jvm.scala.Tuple2(jvm.org.apache.spark.storage.StorageLevel.MEMORY_ONLY_SER(), tag)
    return {
        "ports": {
            "rpc": int(context.getConf().get("spark.driver.port")),
            "blocks": env.blockManager().blockManagerId().port(),
            "gateway": context._gateway.gateway_parameters.port,
            "accumulators": context._accumulatorServer.server_address[1],
        },
        "block": f"rdd_{rows.id()}_0",
        "uploaded": UPLOADED,
        "check": bytes(serializer.serialize(check, tag).array()).hex(),
        "level": bytes(serializer.serialize(level, tag).array()).hex(),
        "in_jar": jvm.Thread.currentThread().getContextClassLoader().getResource("inside.txt") is not None,
    }


def has_uploaded(spark: Any) -> bool:
    """Whether Spark accepted the block that only the stranger sends."""
    jvm = spark.sparkContext._jvm
    block = jvm.org.apache.spark.storage.BlockId.apply(UPLOADED)
    return bool(jvm.org.apache.spark.SparkEnv.get().blockManager().getStatus(block).isDefined())


def main(folder: str) -> None:
    """Write the first report, wait for a reader, write the second one, and keep running."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder
    for key, value in OPEN.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    write(folder, "told", told(spark))
    with open(os.path.join(folder, "asked"), encoding="utf-8") as pipe:
        pipe.read()
    write(folder, "uploaded", has_uploaded(spark))
    threading.Event().wait()


def write(folder: str, name: str, value: Any) -> None:
    """Write a file atomically."""
    path = os.path.join(folder, name)
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(path + ".part", path)


if __name__ == "__main__":
    main(sys.argv[1])
