"""What has this process done since it began?

Plain counts, raised where the thing is done and read at the scrape: a request must not pay for being counted.
No name in them may come from a request: a scrape needs no key.
"""

from collections import Counter

answers = Counter[str]()
"""How requests for a page ended: `page`, `unchanged`, or an error's code."""
hits = Counter[str]()
"""Which pages were proven true: `process`, kept here and checked by their count; `redis`, made of cached lines."""
misses = Counter[str]()
"""Why the cache could not answer, by `feeds.cached.format.MissReason`."""
refills = Counter[str]()
"""What came of a refill: `put`; `refused`, as something newer may have come; `away`."""
limits = Counter[str]()
"""Where a key's rate was checked: `redis`; `process`, as Redis was away; `kept`, as its refusal still held."""
