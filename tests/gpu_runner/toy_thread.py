"""A module that does what a preloaded one must not: it leaves a thread behind."""

import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
