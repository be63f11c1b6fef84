"""The write side: how movements come to be."""
