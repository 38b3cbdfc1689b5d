"""What serves requests, as callers see it."""
