"""Telling other programs of events: webhooks after Standard Webhooks 1.0.

Read in this order: `addresses` (what may be called) · `outgoing` (the one HTTP client for everything outgoing) ·
`signing` · `messages` · `schedule` (when again) · `clock` · `registry` (the webhooks) · `courier` (one webhook's
deliveries) · `notifier` (all couriers; what routes talk to). The deliveries themselves stand in `service/outbox.py`.
"""
