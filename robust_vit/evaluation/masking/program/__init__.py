"""What the traced program of a classifier says of its gradients, without running an attack."""
