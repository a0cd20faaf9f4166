"""The muscle: executes jobs on this host and says what happens, never decides what runs where.

Read in this order. The work: `journal` · `work` · `staging` · `images` · `lines` · `rows` · `arrow_rows` · `sam2` ·
`host_memory` · `training` · `exporters` · `recipes` (one file a kind). The runner around it: `processes` · `devices` ·
`oom` · `doorbell` · `forks` · `survivors` · `child` · `follower` · `zygote` · `forker` · `attempts` · `publisher` ·
`reporter` · `pulse` · `supervisor` · `intake` · `worker` · `health`. torch is imported below `zygote` only.
"""
