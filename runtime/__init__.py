"""The serving runtime: model, worker, scheduler, engine."""
