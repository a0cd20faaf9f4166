"""SAM2 exports: reading them, turning them into datasets, checking and dividing those. No torch in here.

Read in this order: `masks` · `sources` · `json_stream` · `annotations` · `polygons` · `export` · `readers` (a folder,
a file a format) · `shapes` · `targets` · `frames` · `orientation` · `probes` · `manifest` · `writers` (one folder, a
file a format) · `conversion` · `output` · `fingerprints` · `growth` · `advice` · `stratification` · `splits` ·
`look_alikes` · `leakage` · `split_config` · `earlier_split` · `repair` · `overlays` · `observed` · `rules` (a folder,
a file a rule) · `statistics` · `report` · `sample` (writes an export instead of reading one).
"""
