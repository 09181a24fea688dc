"""What a run comes to, for eyes: the pages and the pictures in them."""
