"""SAM2 exports: reading them, turning them into datasets, checking and dividing those. No torch in here.

Read in this order: `masks` · `annotations` · `export` · `targets` · `frames` ·
`orientation` · `probes` · `manifest` · `writers` (one folder, a file a format) · `conversion` · `output` · `splits` ·
`leakage` · `split_config` · `observed` · `rules` (a folder, a file a rule) · `statistics` · `report` · `sample` (writes
an export instead of reading one).
"""
