"""The front and the memory: REST, WebSocket, SSE and pages outside; SQLite inside; decides what runs where.

Read in this order. The memory: `records` · `projection` · `hub` · `transaction` · `steps` · `queries` · `outbox` ·
`thinning` · `store` · `upkeep` · `ledger` · `recorder`. The decisions: `rooms` · `yards` · `placement` · `forecast` ·
`occupancy` · `durations` · `calibration` · `model_names` · `reconcile` · `admission` · `trash` · `dispatch`. Who is
told: `notify`. The front: `refusal` · `violations` · `problems` · `bodies` · `sessions` · `access` · `uploads` ·
`preparing` · `answers` · `savings` · `planning` · `datasets` · `provenance` · `rows` · `experiments` · `links` ·
`downloads` · `pictures` · `cursors` · `feed` · `conversation` · `waiting` · `pages` · `routes` · `app` · `serve`. The
command: `programs` · `watching` · `terminal` · `demo` · `remote_webhooks` · `remote` · `cli`. Imports no arq, no torch,
and nothing of `gpu_runner`.
"""
