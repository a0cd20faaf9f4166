"""Fine-tuning a vision-language model: what the recipes finetune, evaluate, generate and export are made of.

Read in this order: `device` · `demo_model` · `conversation` · `encoding` · `adapters` · `checkpoints` · `inheritance`
· `lineage` · `without_video` · `models` · `room` · `trainable` · `selection` · `survey` · `preview` · `counting` ·
`plan` · `batches` · `loss` · `vision_cache` · `ranks` · `optimisation` · `scoring` · `generation` · `evaluation` ·
`goal` · `run_state` · `curves` · `run_log` · `loop`.
Importing them loads torch but runs no operation of it: they are imported in the zygote, before it forks.
"""
