"""The write side: events become movements."""
