"""What is computed as one operation of autograd: in fewer nodes, and with less that waits for the backward pass."""
