# The HTTP server: routes, request models, errors, authentication, metrics.
