"""The muscle: executes jobs on this host and says what happens, never decides what runs where.

Read in this order: `devices` · `journal` · `recipes` (one file a kind, over `sam2`, `training`, `exporters`) ·
`child` · `zygote` · `supervisor` · `intake` · `worker`. torch is imported below `zygote` only.
"""
