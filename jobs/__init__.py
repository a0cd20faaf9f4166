"""The language all programs of this service speak: specs, events, commands, states, names, paths.

Read in this order: `errors` · `settings` · `logs` · `tasks` · `keys` · `paths` · `models` · `values` ·
`training_config` · `support` · `model_shapes` · `footprint` · `model_config` · `specs` · `presets` · `results` ·
`events` · `commands` · `frames` · `columns` · `lifecycle` · `redis_server` · `bus` · `central_directory` ·
`archive_entries` · `archive` · `documents`. The client, for programs that drive the service: `backoff` · `calls` ·
`subscription` · `transfer` · `connection` · `client` · `async_client`. Nothing here knows SQL or torch, and only
`connection` and the two clients know HTTP.

Glossary
--------
job         one piece of work: an immutable *spec* (its tag is the *kind*), a *status*, events, artifacts
kind        convert · validate · split · prepare · preview · plan · finetune · evaluate · generate · export
experiment  a finetune job seen as an experiment: name, tags, config, metrics, checkpoints;
            `experiment_id == job_id`
attempt     the n-th try of a job; rises only after an interruption or a pause; it is the fencing token, and
            each attempt has its own folder
event       a fact that happened, past tense: `noun.past_participle`
command     start, cancel, pause or resend: a wish of the service to one runner
placement   the service's decision which runner and which device a job gets, or which GPUs of one
recipe      the code that executes one kind
runner      the GPU side on one host; *worker* is arq's process, *zygote* the warm parent, *child* the
            process that runs a recipe
slot        room for one job on a device: `cpu` slots take data work, `gpu` slots take work with a model
journal     `attempt-N/events.jsonl`: what the child says, one event a line
record      a row read from SQLite; never "model", which means a neural network here
frame       what a subscriber receives
webhook     an address that is told of events; a *delivery* is one event for one webhook, a *courier* sends a
            webhook's deliveries in order
"""
