"""Which server, database, user and TLS settings does an address name? Every process parses its addresses here."""
