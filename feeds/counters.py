"""What has this process counted since it started?

Plain counters: raised when something happens, read at a scrape, so that counting costs a request almost nothing. No
label may come from a request, because a scrape needs no key.
"""

from collections import Counter

answers = Counter[str]()
"""How requests for a page ended: `page`, `unchanged`, or an error's code."""
hits = Counter[str]()
"""Which cache held a current page: `process` (a page sent before, its count revalidated); `redis` (cached items)."""
misses = Counter[str]()
"""Why the cache had no answer, by `feeds.cached.format.MissReason`."""
refills = Counter[str]()
"""How refills ended: `put`; `refused`, as something newer may have been published; `away`."""
limits = Counter[str]()
"""Where a key's rate was checked: `redis`; `process`, as Redis was away; `kept`, an earlier refusal that still held."""
