"""What points say: laws, their fits, noise, savings and intervals. Tables in, numbers out."""
