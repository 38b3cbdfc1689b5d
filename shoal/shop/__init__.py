"""The bundled model `shop`: its task (questions about price lists), vocabulary, training and evaluation."""
