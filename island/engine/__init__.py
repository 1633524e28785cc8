"""The embedded Livy-compatible Spark engine: a program of its own, `island engine`.

Parts: `main` (the program), `server` (REST), `sessions` and `batches` (their lives),
`store` (what outlives a restart), `process` (one session's or batch's processes),
`warden` (ends them all), and in the session's own process `child`, `script`, `shell`,
`table`, `views`, `jvm`.
"""
