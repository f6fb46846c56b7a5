"""What every training uses, whatever it learns."""
