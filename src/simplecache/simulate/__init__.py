"""What would happen: the product's own deciding code, run on traces instead of traffic."""
