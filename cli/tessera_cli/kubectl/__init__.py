"""``kubectl tessera``: what the cluster serves, where, why, and what would change; and the approval of a change."""
