"""Planning: cluster facts and demands in, placements or typed refusals out."""
