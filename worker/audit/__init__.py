"""`verify`: is everything what the rules say?"""
