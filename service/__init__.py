"""The front and the memory: REST, WebSocket, SSE and pages outside; SQLite inside; decides what runs where.

Read in this order: `problems` · `access` · `records` · `projection` · `hub` · `batch` · `queries` · `store` ·
`ledger` · `recorder` · `placement` · `model_names` · `reconcile` · `admission` · `trash` · `dispatch` · `routes` ·
`app` · `cli`. Imports no arq, no torch, and nothing of `gpu_runner`.
"""
