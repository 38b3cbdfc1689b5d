"""Load on a server: requests with lengths like a chat's, their arrivals, and clients that send them over HTTP."""
