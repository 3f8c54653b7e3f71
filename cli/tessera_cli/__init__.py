"""The `tessera` command: thin verbs over the core and the runtime."""
