"""What source and target say to each other, and when."""
