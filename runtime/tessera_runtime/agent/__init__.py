"""The agent: reconciles what is wanted with what the server runs."""
