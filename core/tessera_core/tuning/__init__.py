"""Finding a faster way to run a model on the very share of a device that serves it. Pure decisions.

``variants`` says how a model may be run, ``key`` names what was built for it, ``verdict`` says whether a variant takes the
untuned model's place, ``shards`` spreads the candidates over workers and merges what they found.
"""
