"""How often is the scorer right? Gold pairs, and its accuracy on them."""
