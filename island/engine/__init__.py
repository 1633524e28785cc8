"""The embedded Livy-compatible Spark engine, a separate program: `island engine`.

Modules in the engine's process: `main` (the program), `rest_api` (Livy's REST API), `service`
(all sessions and batches), `admission` (checks of requests), `lifecycle`, `sessions` and
`batches` (the life cycle of each), `process` (the processes of one session or batch), `protocol`
(messages to them), `limits`, and `store` (data that persist across restarts). `supervisor` is
the parent process of each session or batch and ends all its processes. Modules in the process of
a session or batch: `session_child`, `batch_child`, `shell`, `table`, `input_views`, `spark`, `jvm`.
"""
