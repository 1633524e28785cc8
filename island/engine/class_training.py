"""The script of the training run, in which Java's list of loaded classes is recorded for the archive.

It does what sessions usually do: DataFrames, SQL, Parquet, JSON, joins, and Python functions in workers.
The folder for its files is the first argument.
"""

from __future__ import annotations

import sys


def main(folder: str) -> None:
    """Run Spark once through the usual work."""
    from pyspark.sql import SparkSession, SQLContext, functions

    spark = SparkSession.builder.getOrCreate()
    SQLContext(spark.sparkContext, spark)
    rows = spark.range(1000).selectExpr("id", "id % 7 as g", "cast(id as double) / 3 as x", "concat('s', id) as name")
    rows.write.parquet(folder)
    table = spark.read.parquet(folder)
    table.createOrReplaceTempView("training")
    spark.sql("select g, count(*) as n, avg(x) as mean from training where id > 10 group by g order by g").collect()
    table.join(table.groupBy("g").agg(functions.max("x").alias("top")), "g").filter("x < top").limit(5).collect()
    table.toJSON().take(2)
    table.describe("x").show()
    spark.createDataFrame([(1, "a"), (2, None)], ["number", "word"]).show()
    spark.sparkContext.parallelize(range(4), 2).map(lambda value: (value % 2, value)).reduceByKey(max).collect()
    functions.udf(lambda value: value, "string")
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1])
